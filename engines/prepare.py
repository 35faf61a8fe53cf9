"""A bundle's graph made ready for a builder: one model file and one weight file, in the precision asked for.

What changes, and nothing else:

* the model-local function of an operator that a plugin brings is taken out (TensorRT-RTX 1.7 imports a
  function in place of a plugin of its name), or stays where there is no plugin;
* without the plugin, attention that was exported as an operator is written out as the nodes of its function;
* in float16 or bfloat16, every product with a constant weight casts its input down and its result up, and
  its weight is stored narrow. Networks are strongly typed, so the types written here are what runs:
  products in the narrow type; norms, gates, recurrence, softmax, sampler and all state in float32. The
  gates' own matrices stay float32 too: 1 - a^2 forgives nothing, and they are a fiftieth of the weights.

Weights are copied tensor by tensor, so that a model of any size needs memory for one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from speechssm.bundle import Bundle
from speechssm.errors import EngineError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Precision = Literal["float32", "float16", "bfloat16"]
PREPARATION = "2"
"""Part of every engine's key: a change of what this module writes makes older engines stale."""
DOMAIN = "speechssm"
ATTENTION = frozenset({"RingAttend", "RingScan", "RingAttendInt8", "RingScanInt8"})
"""Operators of an export with ``--ring-op``."""
PLUGINS = ATTENTION | {"RGLRUStep", "RGLRUScan"}
"""Operators that engines have a plugin for."""
MODEL, WEIGHTS = "model.onnx", "weights.bin"
_ALIGN = 256
_KEPT = ".gates."
"""Weights with this in their name stay float32."""


@dataclass(frozen=True)
class Prepared:
    """A model ready to be built: its file (weights beside it), and how many nodes want a plugin."""

    path: Path
    plugin_nodes: int
    narrowed: int
    """Weights stored in the narrow type."""


def prepare(
    bundle: Bundle,
    graph: str,
    folder: Path,
    *,
    precision: Precision = "float32",
    plugin: bool = True,
    aliased: bool = False,
    foreign: bool = False,
) -> Prepared:
    """Write ``graph`` of ``bundle`` into ``folder`` as one model and its weights.

    ``plugin`` takes the functions of our operators out, ``aliased`` asks the step's recurrence to write
    its state in place (a step's attention writes none), ``foreign`` lets operators of other domains through
    (ONNX Runtime has them).
    Raises EngineError when the onnx package is missing, the graph cannot be built for this engine, or a
    weight does not fit float16.
    """
    onnx = _import_onnx()
    path, _ = bundle.graph(graph)
    model = onnx.load(path, load_external_data=False)
    _refuse_processors_own(graph, model)
    if not foreign:
        _refuse_foreign(graph, model)
    if plugin:
        _strip_functions(model)
    else:
        model = _written_out(model)
    count = sum(node.domain == DOMAIN for node in model.graph.node)
    if aliased:
        for node in model.graph.node:
            if node.domain == DOMAIN and node.op_type not in ATTENTION:
                node.attribute.append(onnx.helper.make_attribute("aliased", 1))
    narrow = _Narrowing(model, precision) if precision != "float32" else None
    if narrow is not None:
        narrow.run()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WEIGHTS).open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                source = narrow.stored.get(tensor.name) if narrow is not None else None
                _move_weight(graph, tensor, path.parent, file, source)
    (folder / MODEL).write_bytes(model.SerializeToString())
    return Prepared(folder / MODEL, count if plugin else 0, len(narrow.stored) if narrow is not None else 0)


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise EngineError(
            "building engines needs the onnx package: run 'pip install onnx', or 'pip install speechssm[rtx]'"
        ) from error
    return onnx


def _refuse_processors_own(graph: str, model: ModelProto) -> None:
    odd = sorted({n.op_type for n in model.graph.node if n.domain == DOMAIN} - PLUGINS)
    if odd:
        raise EngineError(
            f"graph {graph} has {odd[0]}, an operator for processors: export without --linear-op to build engines"
        )


def _refuse_foreign(graph: str, model: ModelProto) -> None:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx", DOMAIN):
            raise EngineError(
                f"graph {graph} uses {node.domain}::{node.op_type}, an operator only ONNX Runtime has: export the "
                "model with --dtype float32, float16, bfloat16, qdq_int8 or qdq_fp8"
            )


def _written_out(model: ModelProto) -> ModelProto:
    """``model`` with attention's functions put in place of their calls; the recurrence keeps its own."""
    from onnx.inliner import inline_selected_functions

    names = [(f.domain, f.name) for f in model.functions if f.domain == DOMAIN and f.name in ATTENTION]
    if not names:
        return model
    written: ModelProto = inline_selected_functions(model, names)
    return written


def _strip_functions(model: ModelProto) -> None:
    kept = [f for f in model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)


@dataclass
class _Narrowing:
    """Rewrites the products of a graph to ``precision``."""

    model: ModelProto
    precision: Precision
    stored: dict[str, int] = field(default_factory=dict)
    """External weights that are to be stored narrow, with the type they have in the bundle."""
    _casts: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        graph = self.model.graph
        self._narrow = _onnx_type(self.precision)
        external = {t.name for t in graph.initializer if t.data_location == 1}
        widened = {  # a bundle stored narrow widens its weights first: the product wants what is below that
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Cast" and node.input[0] in external
        }
        weights = {name: name for name in external} | widened
        used: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                if name in weights:
                    used.setdefault(weights[name], []).append(node)
        targets = {
            weight
            for weight, nodes in used.items()
            if _KEPT not in weight
            and all(_narrows(node, weight, weights) for node in nodes)
            # A table that feeds no product (angles, codebooks) costs a row a step: it keeps its digits.
            and any(node.op_type in ("MatMul", "Gemm") for node in nodes)
        }
        made = list(self._rewritten(graph, weights, targets))
        del graph.node[:]
        graph.node.extend(made)
        for tensor in graph.initializer:
            if tensor.name in targets:
                self.stored[tensor.name] = tensor.data_type
                tensor.data_type = self._narrow
        _drop_unused_casts(graph, set(widened) & {n for n, w in weights.items() if w in targets})

    def _rewritten(
        self, graph: GraphProto, weights: dict[str, str], targets: set[str]
    ) -> Iterator[NodeProto]:
        from onnx import TensorProto, helper

        for node in graph.node:
            at = next((i for i, name in enumerate(node.input) if weights.get(name) in targets), None)
            if at is None or node.op_type == "Cast":
                yield node
                continue
            node.input[at] = weights[node.input[at]]
            if node.op_type != "Gather":
                yield from self._cast_down(node)
            narrow, wide = f"{node.output[0]}/narrow", node.output[0]
            node.output[0] = narrow
            yield node
            yield helper.make_node("Cast", [narrow], [wide], to=TensorProto.FLOAT, name=f"{wide}/wide")

    def _cast_down(self, node: NodeProto) -> Iterator[NodeProto]:
        from onnx import helper

        x = node.input[0]
        if x not in self._casts:
            self._casts[x] = f"{x}/{self.precision}"
            yield helper.make_node(
                "Cast", [x], [self._casts[x]], to=self._narrow, name=f"{x}/{self.precision}"
            )
        node.input[0] = self._casts[x]


def _narrows(node: NodeProto, weight: str, weights: dict[str, str]) -> bool:
    """Whether a use of ``weight`` can read it narrow: the right factor of a product, or a table of rows."""
    if node.op_type == "Cast":
        return True
    places = [i for i, name in enumerate(node.input) if weights.get(name) == weight]
    if node.op_type == "Gather":
        return places == [0]
    if node.op_type == "Gemm" and len(node.input) > 2:
        return False
    return node.op_type in ("MatMul", "Gemm") and places == [1]


def _drop_unused_casts(graph: GraphProto, names: set[str]) -> None:
    kept = [n for n in graph.node if not (n.op_type == "Cast" and n.output[0] in names)]
    del graph.node[:]
    graph.node.extend(kept)


def _onnx_type(precision: Precision) -> int:
    from onnx import TensorProto

    return int({"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[precision])


def _move_weight(graph: str, tensor: TensorProto, folder: Path, file: BinaryIO, source: int | None) -> None:
    """Append the data of ``tensor`` to ``file`` and point it there; ``source`` is the type to narrow from."""
    places = {entry.key: entry.value for entry in tensor.external_data}
    length = int(places["length"])
    raw = np.memmap(folder / places["location"], np.uint8, "r", int(places["offset"]), (length,))
    data = raw if source in (None, tensor.data_type) else _narrowed(graph, tensor, raw, int(source or 0))
    file.write(b"\0" * (-file.tell() % _ALIGN))
    offset = file.tell()
    file.write(data.data)
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", data.nbytes)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _narrowed(graph: str, tensor: TensorProto, raw: np.ndarray, source: int) -> np.ndarray:
    """``raw`` of ONNX type ``source`` in the type the tensor now has; bfloat16 is held as uint16."""
    from onnx import TensorProto

    if source == TensorProto.FLOAT16:
        wide: np.ndarray = raw.view(np.float16).astype(np.float32)
    elif source == TensorProto.BFLOAT16:
        wide = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        wide = raw.view(np.float32)
    if tensor.data_type == TensorProto.BFLOAT16:
        bits = wide.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half: np.ndarray = wide.astype(np.float16)
    if not np.isfinite(half).all():
        raise EngineError(
            f"weight {tensor.name} of graph {graph} exceeds the float16 range: build with --precision bfloat16"
        )
    return half

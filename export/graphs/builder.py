"""Write an ONNX graph one operator at a time.

The builder knows nothing of models. It names values, keeps small constants inside the graph, and
declares weights as external data of a *part* (one safetensors file), so that several graphs can
point at the same bytes and nothing large passes through protobuf.

    g = GraphBuilder("double")
    x = g.input("x", FLOAT, ("b", 4))
    g.output("y", g.op("Mul", x, g.const(np.float32(2))), FLOAT, ("b", 4))
    model = g.model()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from speechssm.errors import ExportError

OPSET = 23
"""Pinned: ONNX Runtime refuses what ``onnx`` writes by default."""
IR_VERSION = 11
"""Pinned with the opset."""

FLOAT = TensorProto.FLOAT
FLOAT16 = TensorProto.FLOAT16
INT64 = TensorProto.INT64
INT32 = TensorProto.INT32
BOOL = TensorProto.BOOL

Axes = Sequence[str | int]


@dataclass
class WeightUse:
    """One weight a graph reads: where it is stored and how."""

    part: str
    name: str
    shape: tuple[int, ...]
    dtype: int


@dataclass
class _Body:
    """Nodes and constants of one graph level; a Scan body is a second level."""

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: dict[tuple[Any, ...], str] = field(default_factory=dict)
    initializers: list[TensorProto] = field(default_factory=list)


class GraphBuilder:
    """Builds one ONNX model at the pinned opset. Value names are unique and carry the current scope."""

    def __init__(
        self, name: str, *, opset: int = OPSET, custom_domains: Mapping[str, int] | None = None
    ) -> None:
        self.name = name
        self.opset = opset
        self.custom_domains = dict(custom_domains or {})
        self.functions: list[onnx.FunctionProto] = []
        self.weights: dict[str, WeightUse] = {}
        self._top = _Body(name)
        self._stack = [self._top]
        self._scopes: list[str] = []
        self._counts: dict[str, int] = {}

    # names

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything made inside."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def _unique(self, stem: str) -> str:
        base = "/".join([*self._scopes, stem])
        count = self._counts.get(base, 0)
        self._counts[base] = count + 1
        return base if count == 0 else f"{base}.{count}"

    # values

    def input(self, name: str, dtype: int, axes: Axes) -> str:
        """Declare an input; ``axes`` mixes letters (symbolic) and sizes."""
        self._stack[-1].inputs.append(helper.make_tensor_value_info(name, dtype, list(axes)))
        return name

    def output(self, name: str, value: str, dtype: int, axes: Axes) -> None:
        """Declare ``value`` as the output ``name``."""
        body = self._stack[-1]
        body.nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}/out"))
        body.outputs.append(helper.make_tensor_value_info(name, dtype, list(axes)))

    def const(self, value: Any, dtype: Any = None) -> str:
        """A small constant kept in the graph, shared when equal. Python floats become float32, ints int64."""
        array = np.asarray(value, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        known = self._top.constants.get(key)
        if known is None:
            known = f"const_{len(self._top.constants)}"
            self._top.constants[key] = known
            self._top.initializers.append(
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), known)
            )
        return known

    def weight(self, part: str, name: str, shape: Sequence[int], stored: int = FLOAT) -> str:
        """A float32 view of weight ``name`` of ``part``; stored narrower, it is widened by a Cast.

        Engines fold the Cast when they load the graph, so a float16 bundle costs no time per step.
        """
        key = f"{part}:{name}"
        use = WeightUse(part, name, tuple(int(s) for s in shape), stored)
        known = self.weights.get(key)
        if known is not None:
            if known != use:
                raise ExportError(
                    f"weight {name} of part {part} is declared twice with different shapes or types"
                )
            return f"{key}/f32" if stored in (FLOAT16, TensorProto.BFLOAT16) else key
        self.weights[key] = use
        if stored in (FLOAT16, TensorProto.BFLOAT16):
            self._top.nodes.insert(
                sum(n.name.startswith("cast_weight") for n in self._top.nodes),
                helper.make_node("Cast", [key], [f"{key}/f32"], to=FLOAT, name=f"cast_weight/{key}"),
            )
            return f"{key}/f32"
        return key

    def packed(self, part: str, name: str, shape: Sequence[int], dtype: int) -> str:
        """Weight ``name`` of ``part`` as it is stored, whatever its type; nothing widens it."""
        key = f"{part}:{name}"
        use = WeightUse(part, name, tuple(int(s) for s in shape), dtype)
        if self.weights.setdefault(key, use) != use:
            raise ExportError(
                f"weight {name} of part {part} is declared twice with different shapes or types"
            )
        return key

    def op(
        self,
        kind: str,
        *inputs: str,
        domain: str = "",
        name: str = "",
        refers: Mapping[str, str] | None = None,
        **attributes: Any,
    ) -> str:
        """Append one node with one output and return the output's name. An empty input is left out.

        ``refers``: integer attributes that are those of the function the node is in, by the function's names.
        """
        made = self.ops(kind, *inputs, outputs=1, domain=domain, name=name, **attributes)[0]
        for attribute, of_function in (refers or {}).items():
            self._stack[-1].nodes[-1].attribute.add(
                name=attribute, ref_attr_name=of_function, type=onnx.AttributeProto.INT
            )
        return made

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", name: str = "", **attributes: Any
    ) -> list[str]:
        """Append one node with several outputs."""
        made = self._unique(name or kind)
        results = [made] if outputs == 1 else [f"{made}:{i}" for i in range(outputs)]
        node = helper.make_node(kind, list(inputs), results, name=made, domain=domain, **attributes)
        self._stack[-1].nodes.append(node)
        return results

    def splice(
        self,
        nodes: Iterable[onnx.NodeProto],
        initializers: Iterable[TensorProto],
        domains: Mapping[str, int],
    ) -> None:
        """Append finished nodes of another model at the top level; their names must not be in use."""
        self._top.nodes.extend(nodes)
        self._top.initializers.extend(initializers)
        self.custom_domains.update(domains)

    # control flow

    @contextmanager
    def body(self, name: str) -> Iterator[_Body]:
        """Build a nested graph (a Scan body); values of the outer graph may be used inside."""
        inner = _Body(self._unique(name))
        self._stack.append(inner)
        try:
            yield inner
        finally:
            self._stack.pop()

    def body_graph(self, inner: _Body) -> onnx.GraphProto:
        """The finished nested graph."""
        return helper.make_graph(inner.nodes, inner.name, inner.inputs, inner.outputs, inner.initializers)

    # result

    def function(self, domain: str, attributes: Sequence[str] = ()) -> onnx.FunctionProto:
        """What was built as a model-local function of this name in ``domain``; constants become nodes of it.

        ``attributes`` are those its nodes carry, whether the body refers to them or not.
        Types and sizes of the inputs are not kept, a function has none. Raises ExportError when it has weights.
        """
        if self.weights or self.functions:
            raise ExportError(f"function {self.name} has weights or functions of its own")
        top = self._top
        constants = [
            helper.make_node("Constant", [], [t.name], name=f"{t.name}/value", value=t)
            for t in top.initializers
        ]
        for node in constants:
            node.attribute[0].t.ClearField("name")
        return helper.make_function(
            domain,
            self.name,
            [v.name for v in top.inputs],
            [v.name for v in top.outputs],
            constants + top.nodes,
            [helper.make_opsetid(d, v) for d, v in {"": self.opset, **self.custom_domains}.items()],
            list(attributes),
        )

    def model(self) -> onnx.ModelProto:
        """The finished model. Weights are external and unplaced: :func:`place_weights` gives file and offset."""
        graph = helper.make_graph(
            self._top.nodes, self.name, self._top.inputs, self._top.outputs, self._top.initializers
        )
        for key, use in self.weights.items():
            tensor = graph.initializer.add()
            tensor.name = key
            tensor.dims.extend(use.shape)
            tensor.data_type = use.dtype
            tensor.data_location = TensorProto.EXTERNAL
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, version) for domain, version in self.custom_domains.items()]
        model = helper.make_model(
            graph, opset_imports=imports, functions=self.functions, producer_name="speechssm"
        )
        model.ir_version = IR_VERSION
        return model

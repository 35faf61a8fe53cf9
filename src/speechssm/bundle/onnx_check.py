"""What is in an .onnx file, found out before ONNX Runtime sees it, and without the onnx package.

A graph from elsewhere is data until an engine opens it; from then on it may read any file it names
(external data: CVE-2026-27489, CVE-2026-34445), call into whatever operators the process has, and
nest deeply enough to end the process. So the file is walked once, in bounded time and memory, and
refused unless

* its weights lie inline and fit their shapes, or are exactly one tensor of a safetensors file that the
  manifest lists for this graph;
* its operators are ONNX's own, ours, or one of a short list (FOREIGN), and its functions are ours, do
  not recurse and do not blow up;
* its inputs and outputs are those of the manifest.

What it cannot find out is how much memory and time a graph of allowed operators takes when it runs:
see docs/security-model.md.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from speechssm.errors import BundleError

from . import limits, onnx_schema, tensors, wire
from .manifest import GraphEntry, Value, is_plain
from .wire import Span, WireError

DOMAINS = frozenset({"", "ai.onnx", "speechssm"})
"""Operator domains a graph may use; ``ai.onnx`` is another name of the empty one."""
FOREIGN = frozenset({("com.microsoft", "MatMulNBits")})
"""Single operators of other domains: ONNX Runtime's product with weights of 4 or 8 bits, which opens nothing."""
OURS = "speechssm"
"""The one domain of model-local functions."""

Ranges = Mapping[str, frozenset[tuple[int, int]]]
"""Offset and length of every tensor, by weight file."""
FunctionKey = tuple[str, str]
"""Name and overload."""


@dataclass(frozen=True)
class GraphFacts:
    """What was found: nodes (functions written out), operators by ``domain::name``, and external weights."""

    nodes: int
    operators: Mapping[str, int]
    external: frozenset[tuple[str, int, int]]
    """File, offset and length."""


def check_graph(path: Path, entry: GraphEntry) -> GraphFacts:
    """Check the graph file at ``path`` against its manifest entry; weight files lie in the same folder.

    Raises BundleError when it is not a plain file, is too large, or holds anything this module refuses.
    """
    folder = path.parent
    raw = _read(path)
    try:
        ranges = {name: tensor_ranges(_weight_file(folder, name)) for name in entry.weights}
    except OSError as error:
        raise BundleError(
            f"a weight file of {path} cannot be read ({error.strerror or error}): copy the bundle again"
        ) from error
    return check_bytes(raw, path.name, entry, ranges)


def tensor_ranges(path: Path) -> frozenset[tuple[int, int]]:
    """Offset and length of every tensor of a safetensors file."""
    return frozenset((e.offset, e.length) for e in tensors.read_header(path).values())


def check_bytes(raw: bytes, name: str, entry: GraphEntry, ranges: Ranges) -> GraphFacts:
    """As :func:`check_graph`, on bytes in memory. ``name`` is for the message."""
    walk = _Walk(raw, ranges)
    try:
        facts = walk.model()
        _check_signature("input", walk.inputs, entry.inputs)
        _check_signature("output", walk.outputs, entry.outputs)
    except WireError as error:
        raise BundleError(
            f"{name} is not a graph that can be opened safely: {error}; export the model again, or get it from "
            "someone you trust"
        ) from error
    return facts


def _read(path: Path) -> bytes:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is a link or special file: copy the file itself there")
        if status.st_size > limits.GRAPH_BYTES:
            raise BundleError(
                f"{path} has {status.st_size} bytes, more than the limit of {limits.GRAPH_BYTES}: a bundle's graphs "
                "hold no weights"
            )
        with path.open("rb") as file:
            return file.read(limits.GRAPH_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}): copy the bundle again"
        ) from error


def _weight_file(folder: Path, name: str) -> Path:
    path = folder / name
    if not is_plain(name) or not stat.S_ISREG(path.lstat().st_mode):
        raise BundleError(f"{path} is not a plain file of the bundle: copy the bundle again")
    return path


@dataclass
class _Function:
    """A model-local function: nodes of its own, and how often each function is called."""

    nodes: int
    calls: Counter[FunctionKey]


@dataclass
class _Walk:
    """One pass over a model. Raises WireError at the first thing that is refused."""

    raw: bytes
    ranges: Ranges
    budget: wire.Budget = field(default_factory=lambda: wire.Budget(limits.GRAPH_FIELDS))
    operators: Counter[str] = field(default_factory=Counter)
    external: set[tuple[str, int, int]] = field(default_factory=set)
    functions: dict[FunctionKey, _Function] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def model(self) -> GraphFacts:
        graph: Span | None = None
        functions: list[Span] = []
        for name, value in self._scan((0, len(self.raw)), onnx_schema.MODEL):
            if name == "graph":
                graph = _span(value)
            elif name == "functions":
                functions.append(_span(value))
            elif name == "opset_import":
                self._opset(_span(value))
            elif name == "metadata_props" and self._entry(_span(value))[0] == "ort_config":
                raise WireError("it brings settings for ONNX Runtime (ort_config)")
        if graph is None:
            raise WireError("it holds no graph")
        if len(functions) > limits.GRAPH_FUNCTIONS:
            raise WireError(f"it has more than {limits.GRAPH_FUNCTIONS} functions")
        for span in functions:
            self._function(span)
        calls: Counter[FunctionKey] = Counter()
        nodes = self._graph(graph, 0, calls)
        known: dict[FunctionKey, tuple[int, int]] = {}
        for key in self.functions:
            self._expanded(key, known)
        nodes += sum(times * self._expanded(key, known)[0] for key, times in calls.items())
        if nodes > limits.GRAPH_NODES:
            raise WireError(f"it has {nodes} nodes with its functions written out")
        return GraphFacts(nodes, dict(self.operators), frozenset(self.external))

    # functions

    def _function(self, span: Span) -> None:
        texts = {"name": "", "domain": "", "overload": ""}
        calls: Counter[FunctionKey] = Counter()
        nodes = 0
        for name, value in self._scan(span, onnx_schema.FUNCTION):
            if name in texts:
                texts[name] = wire.text(self.raw, value)
            elif name == "node":
                nodes += self._node(_span(value), 0, calls)
            elif name == "attribute_proto":
                nodes += self._attribute(_span(value), 0, calls)
            elif name == "opset_import":
                self._opset(_span(value))
            elif name == "value_info":
                self._value(_span(value))
        if texts["domain"] != OURS:
            raise WireError(f"it defines function {texts['name']} in domain {texts['domain'] or 'ai.onnx'!r}")
        key = (texts["name"], texts["overload"])
        if key in self.functions:
            raise WireError(f"it defines function {key[0]} twice")
        self.functions[key] = _Function(nodes, calls)

    def _expanded(self, key: FunctionKey, known: dict[FunctionKey, tuple[int, int]]) -> tuple[int, int]:
        """Nodes of a function with everything it calls written out, and its longest chain of calls."""
        function = self.functions.get(key)
        if function is None:  # an operator of our own library
            return 0, 0
        if key not in known:
            known[key] = (0, limits.FUNCTION_DEPTH)  # a function that reaches itself finds this
            nodes, chain = function.nodes, 0
            for called, times in function.calls.items():
                inner, links = self._expanded(called, known)
                nodes, chain = nodes + times * inner, max(chain, links)
            if chain >= limits.FUNCTION_DEPTH:
                raise WireError(
                    f"function {key[0]} calls functions in a chain that is too long or never ends"
                )
            known[key] = (nodes, chain + 1)
        return known[key]

    # graphs

    def _graph(self, span: Span, depth: int, calls: Counter[FunctionKey]) -> int:
        if depth > limits.GRAPH_DEPTH:
            raise WireError(f"its graphs are nested more than {limits.GRAPH_DEPTH} deep")
        nodes = 0
        for name, value in self._scan(span, onnx_schema.GRAPH):
            if name == "node":
                nodes += self._node(_span(value), depth, calls)
            elif name == "initializer":
                self._tensor(_span(value), external=depth == 0)
            elif name in ("input", "output", "value_info"):
                found = self._value(_span(value))
                if depth == 0 and name != "value_info":
                    (self.inputs if name == "input" else self.outputs).append(_named(found))
        return nodes

    def _node(self, span: Span, depth: int, calls: Counter[FunctionKey]) -> int:
        texts = {"op_type": "", "domain": "", "overload": ""}
        nodes = 1
        for name, value in self._scan(span, onnx_schema.NODE):
            if name in texts:
                texts[name] = wire.text(self.raw, value)
            elif name == "attribute":
                nodes += self._attribute(_span(value), depth, calls)
        self._check_domain(texts["domain"], texts["op_type"])
        plain = texts["domain"] in ("", "ai.onnx")
        self.operators[texts["op_type"] if plain else f"{texts['domain']}::{texts['op_type']}"] += 1
        if texts["domain"] == OURS:
            calls[texts["op_type"], texts["overload"]] += 1
        return nodes

    def _attribute(self, span: Span, depth: int, calls: Counter[FunctionKey]) -> int:
        nodes = 0
        for name, value in self._scan(span, onnx_schema.ATTRIBUTE):
            if name in ("g", "graphs"):
                nodes += self._graph(_span(value), depth + 1, calls)
            elif name in ("t", "tensors"):
                self._tensor(_span(value), external=False)
        return nodes

    def _opset(self, span: Span) -> None:
        domain = ""
        for name, value in self._scan(span, onnx_schema.OPSET):
            if name == "domain":
                domain = wire.text(self.raw, value)
        self._check_domain(domain, "")

    def _check_domain(self, domain: str, operator: str) -> None:
        if domain not in DOMAINS and not self._is_foreign(domain, operator):
            what = f"operator {operator} of" if operator else "operators of"
            raise WireError(f"it uses {what} domain {domain!r}, and only ONNX's own and speechssm's are run")

    @staticmethod
    def _is_foreign(domain: str, operator: str) -> bool:
        """True for an operator of :data:`FOREIGN`, and for the import (no operator) of its domain."""
        return any(domain == theirs and operator in (name, "") for theirs, name in FOREIGN)

    # values

    def _value(self, span: Span) -> tuple[str, int, list[str | int | None]]:
        """Name, element type and axes; an axis without name and size is None."""
        label, element, axes = "", 0, list[str | int | None]()
        for name, value in self._scan(span, onnx_schema.VALUE):
            if name == "name":
                label = wire.text(self.raw, value)
            elif name == "type":
                for _, tensor in self._only(_span(value), onnx_schema.TYPE, "tensor_type"):
                    for part, inner in self._scan(_span(tensor), onnx_schema.TENSOR_TYPE):
                        if part == "elem_type":
                            assert isinstance(inner, int)
                            element = inner
                        else:
                            axes = self._axes(_span(inner))
        return label, element, axes

    def _axes(self, span: Span) -> list[str | int | None]:
        axes: list[str | int | None] = []
        for _, dim in self._scan(span, onnx_schema.SHAPE):
            axis: str | int | None = None
            for name, value in self._scan(_span(dim), onnx_schema.DIMENSION):
                if name == "denotation":
                    continue
                if axis is not None:
                    raise WireError("an axis has both a name and a size")
                axis = value if isinstance(value, int) else wire.text(self.raw, value)
            axes.append(axis)
            if len(axes) > limits.RANK:
                raise WireError(f"a value has more than {limits.RANK} axes")
        return axes

    # tensors

    def _tensor(self, span: Span, *, external: bool) -> None:
        label, kind, location = "", 0, 0
        dims: list[int] = []
        places: list[Span] = []
        data: dict[str, int] = {}  # bytes of raw_data, elements of the typed fields
        for name, value in self._scan(span, onnx_schema.TENSOR):
            if name == "dims":
                if not isinstance(value, int) and value[1] - value[0] > 10 * limits.RANK:
                    raise WireError(f"a tensor has more than {limits.RANK} axes")
                dims += map(wire.signed, wire.varints(self.raw, value))
                if len(dims) > limits.RANK:
                    raise WireError(f"a tensor has more than {limits.RANK} axes")
            elif name == "name":
                label = wire.text(self.raw, value)
            elif name == "data_type":
                assert isinstance(value, int)
                kind = value
            elif name == "data_location":
                assert isinstance(value, int)
                location = value
            elif name == "external_data":
                places.append(_span(value))
            elif name == "raw_data":
                data[name] = value[1] - value[0] if not isinstance(value, int) else 0
            elif name in onnx_schema.TYPED_DATA:
                data[name] = data.get(name, 0) + self._elements(name, value)
        if kind not in onnx_schema.TENSOR_BITS:
            raise WireError(f"tensor {label} has element type {kind}, which no weight here has")
        if any(size < 0 for size in dims):
            raise WireError(f"tensor {label} has a negative axis")
        size_bytes = -(-prod(dims) * onnx_schema.TENSOR_BITS[kind] // 8)
        if location == onnx_schema.EXTERNAL:
            if not external or data:
                raise WireError(
                    f"tensor {label} has its data both here and elsewhere, or may not have it elsewhere"
                )
            self._external(label, size_bytes, places)
        elif location != 0 or places:
            raise WireError(f"tensor {label} does not say clearly where its data is")
        else:
            self._inline(label, kind, prod(dims), size_bytes, data)

    def _elements(self, name: str, value: int | Span) -> int:
        if name in ("float_data", "double_data"):
            start, end = _span(value)
            return (end - start) // (4 if name == "float_data" else 8)
        if isinstance(value, int):
            return 1
        # A packed number ends with a byte below 128.
        return len(self.raw[value[0] : value[1]].translate(None, _CONTINUED))

    def _inline(self, label: str, kind: int, count: int, size_bytes: int, data: dict[str, int]) -> None:
        if len(data) > 1:
            raise WireError(f"tensor {label} has its data twice")
        name, found = next(iter(data.items()), ("raw_data", 0))
        if name == "raw_data":
            fits = found == size_bytes
        else:
            # Two 4-bit numbers share one of int32_data.
            wanted = -(-count // 2) if onnx_schema.TENSOR_BITS[kind] == 4 else count
            fits = kind in onnx_schema.TYPED_DATA[name] and found == wanted
        if not fits:
            raise WireError(f"tensor {label} of {count} elements comes with {found} in its {name}")

    def _external(self, label: str, size_bytes: int, places: Iterable[Span]) -> None:
        found: dict[str, str] = {}
        for span in places:
            key, value = self._entry(span)
            if key in found:
                raise WireError(f"weight {label} gives its {key} twice")
            found[key] = value
        if found.keys() != {"location", "offset", "length"}:
            raise WireError(f"weight {label} needs a location, an offset and a length, and nothing else")
        file = found["location"]
        if not is_plain(file) or file not in self.ranges:
            raise WireError(
                f"weight {label} lies in {file!r}, which the manifest does not list for this graph"
            )
        offset, length = _digits(label, found["offset"]), _digits(label, found["length"])
        if length != size_bytes or length == 0:
            raise WireError(f"weight {label} takes {size_bytes} bytes but points at {length}")
        if (offset, length) not in self.ranges[file]:
            raise WireError(
                f"weight {label} points at bytes {offset} to {offset + length} of {file}, where no tensor lies"
            )
        self.external.add((file, offset, length))

    # messages

    def _entry(self, span: Span) -> tuple[str, str]:
        parts = {"key": "", "value": ""}
        for name, value in self._scan(span, onnx_schema.ENTRY):
            parts[name] = wire.text(self.raw, value)
        return parts["key"], parts["value"]

    def _scan(self, span: Span, message: wire.Message) -> Iterator[tuple[str, int | Span]]:
        for name, value in wire.scan(self.raw, span, message, self.budget):
            if name == "metadata_props":
                self._entry(_span(value))  # it says nothing here, but parsers read it
            yield name, value

    def _only(self, span: Span, message: wire.Message, wanted: str) -> Iterator[tuple[str, int | Span]]:
        return (part for part in self._scan(span, message) if part[0] == wanted)


_CONTINUED = bytes(range(128, 256))


def _span(value: int | Span) -> Span:
    assert not isinstance(value, int), "the tables give numbers for messages"
    return value


def _digits(label: str, number: str) -> int:
    if (
        not (number.isascii() and number.isdigit())
        or len(number) > 19
        or (number[0] == "0" and number != "0")
    ):
        raise WireError(f"weight {label} has an offset or length that is not a plain number")
    return int(number)


def _named(found: tuple[str, int, list[str | int | None]]) -> Value:
    label, element, axes = found
    if element not in onnx_schema.VALUE_TYPES:
        raise WireError(f"{label} has element type {element}, which no input or output here has")
    known = [axis for axis in axes if axis is not None]
    if len(known) != len(axes):
        raise WireError(f"{label} has an axis with neither a name nor a size")
    # Not checked again: it is compared with one that was.
    return Value.model_construct(name=label, dtype=onnx_schema.VALUE_TYPES[element], axes=tuple(known))


def _check_signature(kind: str, found: list[Value], declared: tuple[Value, ...]) -> None:
    here = {v.name: v for v in found}
    there = {v.name: v for v in declared}
    if len(here) != len(found):
        raise WireError(f"it has an {kind} twice")
    for name in sorted(here.keys() ^ there.keys()):
        raise WireError(f"{kind} {name} is in only one of the file and the manifest")
    for name, value in here.items():
        wanted = there[name]
        if (value.dtype, value.axes) != (wanted.dtype, wanted.axes):
            raise WireError(
                f"{kind} {name} is {value.dtype} {list(value.axes)} in the file and {wanted.dtype} "
                f"{list(wanted.axes)} in the manifest"
            )

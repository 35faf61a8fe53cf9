"""What the graph check accepts: every graph the exporter makes, with room to spare; and that it reads as onnx does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from speechssm.bundle import Bundle, limits, onnx_check, open_bundle, wire
from speechssm.bundle.manifest import GraphEntry
from speechssm.export.graphs.builder import GraphBuilder
from speechssm.export.graphs.lm import build_lm_chunk, build_lm_step
from speechssm.export.package import _value
from speechssm.export.presets import PRESETS


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def test_facts_are_those_onnx_finds(bundle: Bundle) -> None:
    for entry in bundle.manifest.graphs.values():
        facts = onnx_check.check_graph(bundle.folder / entry.file, entry)
        model = onnx.load(bundle.folder / entry.file, load_external_data=False)
        assert facts.external == external(model)
        assert facts.operators == operators(model)
        assert facts.nodes == written_out(model)


def external(model: onnx.ModelProto) -> set[tuple[str, int, int]]:
    found = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            places = {e.key: e.value for e in tensor.external_data}
            found.add((places["location"], int(places["offset"]), int(places["length"])))
    return found


def written_out(model: onnx.ModelProto) -> int:
    """Nodes with every call of a function also counted as the function's nodes."""
    own = operators(model, functions=False)
    bodies = {f"{f.domain}::{f.name}": sum(nodes_of([f]).values()) for f in model.functions}
    return sum(own.values()) + sum(own[name] * nodes for name, nodes in bodies.items())


def operators(model: onnx.ModelProto, *, functions: bool = True) -> Counter[str]:
    """Every node written in the file, function bodies among them."""
    return nodes_of([model.graph, *(model.functions if functions else ())])


def nodes_of(stack: list[onnx.GraphProto | onnx.FunctionProto]) -> Counter[str]:
    counts: Counter[str] = Counter()
    while stack:
        for node in stack.pop().node:
            counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
            stack += [a.g for a in node.attribute if a.HasField("g")]
    return counts


@pytest.mark.parametrize("build", [build_lm_step, build_lm_chunk])
def test_the_largest_preset_has_room(build: object) -> None:
    """Every limit is at least four times what 9b needs."""
    builder: GraphBuilder = build(PRESETS["9b"].lm)  # type: ignore[operator]
    raw, entry, ranges = placed(builder)
    walk = onnx_check._Walk(raw, ranges)
    facts = walk.model()
    assert 4 * facts.nodes < limits.GRAPH_NODES
    assert 4 * (limits.GRAPH_FIELDS - walk.budget.left) < limits.GRAPH_FIELDS
    assert 4 * len(raw) < limits.GRAPH_BYTES
    assert onnx_check.check_bytes(raw, "9b", entry, ranges) == facts


def placed(builder: GraphBuilder) -> tuple[bytes, GraphEntry, dict[str, frozenset[tuple[int, int]]]]:
    """A graph whose weights lie one after the other in a file that nobody wrote."""
    model, offset, ranges = builder.model(), 0, set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            size = 4
            for dim in tensor.dims:
                size *= dim
            for key, value in (("location", "lm.safetensors"), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            ranges.add((offset, size))
            offset += size
    entry = GraphEntry(
        file="lm.onnx",
        weights=("lm.safetensors",),
        inputs=tuple(_value(v) for v in model.graph.input),
        outputs=tuple(_value(v) for v in model.graph.output),
    )
    return model.SerializeToString(), entry, {"lm.safetensors": frozenset(ranges)}


def test_onnx_runtime_sees_checked_files_only(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every session is made right after a check of the same file, in the one place that makes sessions."""
    import onnxruntime

    from speechssm.engines import ort
    from speechssm.engines.loading import BundleGraphs

    checked: list[Path] = []
    true_check, true_session = ort.check_graph, onnxruntime.InferenceSession

    def check(path: Path, entry: GraphEntry) -> object:
        checked.append(path)
        return true_check(path, entry)

    def session(path: str, *args: object, **kwargs: object) -> object:
        assert checked[-1] == Path(path)
        checked.append(Path("opened"))
        return true_session(path, *args, **kwargs)

    monkeypatch.setattr(ort, "check_graph", check)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    graphs = BundleGraphs(open_bundle(tiny_bundle))
    for name in graphs.bundle.manifest.graphs:
        graphs(name)
    assert len(checked) == 2 * len(graphs.bundle.manifest.graphs)
    graphs.close()


def test_nobody_opens_graphs_unchecked() -> None:
    """Whoever hands a graph file to an engine calls the check itself."""
    import speechssm

    package = Path(speechssm.__file__).parent
    users = {
        str(path.relative_to(package)): path.read_text()
        for folder in ("engines", "runtime", "cli", "bundle")
        for path in (package / folder).rglob("*.py")
    }
    openers = {p for p, text in users.items() if "InferenceSession(" in text or ".OnnxParser(" in text}
    assert "engines/ort.py" in openers
    # The worker imports nothing of ours; who starts it has checked.
    starts = {"engines/tensorrt_worker.py": "engines/builder.py"}
    assert not {p for p in openers if "check_graph(" not in users[starts.get(p, p)]}


def test_the_budget_is_charged_for_every_field(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = bundle.manifest.graphs["codec_decode"]
    raw = (bundle.folder / entry.file).read_bytes()
    ranges = {name: onnx_check.tensor_ranges(bundle.folder / name) for name in entry.weights}
    walk = onnx_check._Walk(raw, ranges)
    walk.model()
    needed = limits.GRAPH_FIELDS - walk.budget.left
    onnx_check._Walk(raw, ranges, wire.Budget(needed)).model()
    with pytest.raises(wire.WireError, match="more fields"):
        onnx_check._Walk(raw, ranges, wire.Budget(needed - 1)).model()

"""Graphs made ready for a builder: the same numbers in float32, narrow products elsewhere, nothing else changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from speechssm.bundle import Bundle, open_bundle
from speechssm.engines.prepare import MODEL, WEIGHTS, prepare
from speechssm.errors import EngineError
from speechssm.export.exporter import export_preset
from speechssm.export.package import narrowed


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A language model stored in each type."""
    folder = tmp_path_factory.mktemp("stored") / request.param
    export_preset("tiny", folder, seed=3, rollout=8, storage=request.param)
    return open_bundle(folder)


def session(path: Path, *, as_written: bool = False) -> onnxruntime.InferenceSession:
    """``as_written`` keeps ONNX Runtime from taking casts down and up again for nothing."""
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(bundle: Bundle, graph: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = {"b": 3, "t": 9, "f": 4, "n": 1280}
    if graph == "acoustic":
        sizes |= {"t": 80, "f": 160}
    if graph == "tokenizer":
        sizes |= {"n": 640 * 20}
    made = {}
    for value in bundle.manifest.graphs[graph].inputs:
        shape = [a if isinstance(a, int) else sizes[a] for a in value.axes]
        if value.dtype == "float32":
            made[value.name] = np.asarray(0.3 * rng.standard_normal(shape), np.float32)
        elif value.dtype == "bool":
            made[value.name] = rng.random(shape) < 0.8
        else:
            made[value.name] = np.asarray(rng.integers(0, 8 if value.name != "level" else 2, shape))
    for name in ("temperature", "top_p", "uniform"):
        if name in made:
            made[name] = np.asarray(np.abs(made[name]) + 0.1, np.float32)
    return made


@pytest.mark.parametrize(
    "graph",
    ["lm_step", "lm_chunk", "tokenizer", "acoustic_prompt", "acoustic", "codec_encode", "codec_decode"],
)
def test_float32_is_the_same_graph(
    bundle: Bundle, graph: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Bit for bit, and from its own folder: nothing points back into the bundle."""
    prepared = prepare(bundle, graph, tmp_path / "made", plugin=False)
    (tmp_path / "made").rename(tmp_path / "moved")
    inputs = feeds(bundle, graph, rng)
    expected = session(bundle.graph(graph)[0]).run(None, inputs)
    found = session(tmp_path / "moved" / MODEL).run(None, inputs)
    assert prepared.narrowed == prepared.plugin_nodes == 0
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    assert sorted(p.name for p in (tmp_path / "moved").iterdir()) == [MODEL, WEIGHTS]


def test_float16_products_and_nothing_else(stored: Bundle, tmp_path: Path, rng: np.random.Generator) -> None:
    made = prepare(stored, "lm_step", tmp_path, precision="float16", plugin=False)
    model = onnx.load(made.path, load_external_data=False)
    onnx.checker.check_model(str(made.path))
    types = {t.name: t.data_type for t in model.graph.initializer}
    half = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16 and "gates" not in name}
    assert len(half) == made.narrowed
    assert "lm:embed" in half
    assert {"lm:L00.linear_x.weight", "lm:L02.q.weight", "lm:L02.mlp.down.weight"} <= half
    for name in half:
        assert not any(part in name for part in ("gates", "norm", "bias", "conv", "rope", "log_decay"))
    gates = {name: kind for name, kind in types.items() if "gates." in name and not name.endswith("bias")}
    assert set(gates.values()) == {weights(stored.graph("lm_step")[0])[name][0] for name in gates}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in half:
            assert node.input[0].endswith("/float16")
    states = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert all(kind != onnx.TensorProto.FLOAT16 for kind in states.values())
    inputs = feeds(stored, "lm_step", rng)
    expected = session(stored.graph("lm_step")[0]).run(None, inputs)
    found = session(made.path, as_written=True).run(None, inputs)
    names = [v.name for v in model.graph.output]
    for name, a, b in zip(names, expected, found, strict=True):
        if a.dtype.kind == "f":
            # A product of 72 terms of size one, each rounded to 2^-11, through five layers.
            assert np.abs(a - b).max() <= 0.02 * max(1.0, np.abs(a).max()), name
    if stored.manifest.lm.storage == "float32":
        assert any(not np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_bfloat16_weights_are_rounded_to_nearest_even(bundle: Bundle, tmp_path: Path) -> None:
    made = prepare(bundle, "lm_step", tmp_path, precision="bfloat16", plugin=False)
    onnx.checker.check_model(str(made.path))
    wide = weights(bundle.graph("lm_step")[0])
    narrow = weights(made.path)
    checked = 0
    for name, (kind, raw) in narrow.items():
        source_kind, source = wide[name]
        if kind == onnx.TensorProto.BFLOAT16:
            assert source_kind == onnx.TensorProto.FLOAT
            want = narrowed(name, np.frombuffer(source, np.float32), "BF16")
            assert raw == want.tobytes()
            checked += 1
        else:
            assert raw == source, name
    assert checked == made.narrowed > 0


def weights(path: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            at = {e.key: e.value for e in tensor.external_data}
            data = (path.parent / at["location"]).read_bytes()
            start = int(at["offset"])
            found[tensor.name] = tensor.data_type, data[start : start + int(at["length"])]
    return found


def test_the_plugin_takes_the_functions_place(bundle: Bundle, tmp_path: Path) -> None:
    made = prepare(bundle, "lm_step", tmp_path / "a", plugin=True, aliased=True)
    model = onnx.load(made.path, load_external_data=False)
    nodes = [n for n in model.graph.node if n.domain == "speechssm"]
    assert len(nodes) == made.plugin_nodes == bundle.manifest.lm.shape.blocks.count("recurrent")
    assert not model.functions
    assert all([(a.name, a.i) for a in n.attribute] == [("aliased", 1)] for n in nodes)
    kept = onnx.load(prepare(bundle, "lm_step", tmp_path / "b", plugin=False).path, load_external_data=False)
    assert [f.name for f in kept.functions] == ["RGLRUStep"]


def test_a_weight_beyond_float16_is_named(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(bundle.folder, folder)
    path, _ = bundle.graph("lm_step")
    tensor = next(
        t
        for t in onnx.load(path, load_external_data=False).graph.initializer
        if t.name.endswith("linear_x.weight")
    )
    at = {e.key: e.value for e in tensor.external_data}
    with (folder / at["location"]).open("r+b") as file:
        file.seek(int(at["offset"]))
        file.write(np.float32(1e6).tobytes())
    harmed = Bundle(folder, bundle.manifest, bundle.digest)
    with pytest.raises(EngineError, match=r"linear_x.weight .* exceeds the float16 range.*bfloat16"):
        prepare(harmed, "lm_step", tmp_path / "made", precision="float16")
    prepare(harmed, "lm_step", tmp_path / "wide", precision="bfloat16")


def test_operators_only_onnxruntime_has_are_refused(tmp_path: Path) -> None:
    export_preset("tiny", tmp_path / "int8", seed=0, rollout=4, storage="int8")
    bundle = open_bundle(tmp_path / "int8")
    with pytest.raises(EngineError, match="MatMulNBits, an operator only ONNX Runtime has"):
        prepare(bundle, "lm_step", tmp_path / "made")
    prepare(bundle, "lm_step", tmp_path / "ort", plugin=False, foreign=True)

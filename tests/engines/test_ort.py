"""ONNX Runtime behind the Graph protocol: bindings, signatures, providers, errors."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.bundle import open_bundle
from speechssm.engines.loading import BundleGraphs
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.engines.protocol import Graph
from speechssm.engines.verify import verify_bundle
from speechssm.errors import BundleError, EngineError
from tests.doubles.lm import ToyLM, toy_lm


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyLM:
    return toy_lm(tmp_path_factory.mktemp("ort"))


def buffers(graph: OrtGraph, rows: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    make = lambda v: np.zeros([a if isinstance(a, int) else rows for a in v.axes], v.dtype)  # noqa: E731
    return {v.name: make(v) for v in graph.entry.inputs}, {v.name: make(v) for v in graph.entry.outputs}


def test_bound_runs_equal_calls_and_read_the_buffers_each_time(toy: ToyLM, rng: np.random.Generator) -> None:
    graph = toy.plain_step
    assert isinstance(graph, Graph)
    inputs, outputs = buffers(graph, 3)
    inputs["active"][:] = True
    inputs["temperature"][:] = 1
    inputs["top_p"][:] = 1
    bound = graph.bind(inputs, outputs)
    for _ in range(5):
        inputs["token"][:] = rng.integers(0, toy.shape.vocab, 3)
        inputs["uniform"][:] = rng.random(3)
        for array in outputs.values():
            array[...] = 99  # outputs are written, not accumulated
        graph.run(bound)
        for name, expected in zip(outputs, graph.call(inputs, list(outputs)), strict=True):
            assert outputs[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("token", lambda a: None, "token is missing"),
        ("token", lambda a: a.astype(np.int32), "must be C-contiguous int64"),
        ("in_L00_conv", lambda a: a[..., ::2], "L00_conv"),
        ("in_L00_lru", lambda a: np.zeros((4, 40), np.float32), "in_L00_lru has 4 along b, expected 3"),
        ("in_L00_lru", lambda a: np.zeros((3, 41), np.float32), "in_L00_lru has 41 along 40"),
    ],
)
def test_wrong_buffers_are_named(toy: ToyLM, name: str, change, message: str) -> None:
    inputs, outputs = buffers(toy.plain_step, 3)
    changed = change(inputs[name])
    inputs = {k: v for k, v in inputs.items() if k != name} | ({} if changed is None else {name: changed})
    with pytest.raises(EngineError, match=message):
        toy.plain_step.bind(inputs, outputs)


def test_an_unknown_buffer_is_named(toy: ToyLM) -> None:
    inputs, outputs = buffers(toy.plain_step, 1)
    with pytest.raises(EngineError, match="extra is not of this graph"):
        toy.plain_step.bind(inputs | {"extra": inputs["token"]}, outputs)


def test_a_file_that_disagrees_with_its_manifest_is_refused(toy: ToyLM, tmp_path: Path) -> None:
    other = toy_lm(tmp_path, seed=3)
    entry = toy.plain_step.entry.model_copy(update={"inputs": toy.plain_step.entry.inputs[:-1], "state": ()})
    with pytest.raises(BundleError, match="is in only one of the file and the manifest"):
        OrtGraph("lm_step", tmp_path / other.plain_step.entry.file, entry)


def test_cuda_is_judged_by_what_the_session_got(tiny_bundle: Path) -> None:
    """Without a GPU, asking for CUDA is an error that says what to install, never a silent CPU run."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime may really have CUDA")
    with pytest.raises(EngineError, match=r"CUDAExecutionProvider was asked for.*speechssm\[gpu\]"):
        speechssm.load(tiny_bundle, provider="cuda")


def test_a_missing_onnxruntime_names_both_extras(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"speechssm\[cpu\].*speechssm\[gpu\]"):
        speechssm.load(tiny_bundle)


def test_graphs_open_once_and_reopen_after_release(tiny_bundle: Path) -> None:
    graphs = BundleGraphs(open_bundle(tiny_bundle), OrtOptions(threads=1))
    found: list[Graph] = []
    threads = [threading.Thread(target=lambda: found.append(graphs("lm_chunk"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(g) for g in found}) == 1
    graphs.release("lm_chunk")
    inputs, outputs = buffers(found[0], 1)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="closed"):
        found[0].bind(inputs, outputs)
    assert graphs("lm_chunk") is not found[0]
    graphs.close()


def test_verify_runs_every_graph(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    lines = list(verify_bundle(bundle, OrtOptions(threads=1)))
    for name in bundle.manifest.graphs:
        assert f"{name}: loads and runs" in lines

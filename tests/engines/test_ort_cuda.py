"""ONNX Runtime's CUDA executor on a double of its session: graph ids, warm-up runs, addresses, the first-step check."""

from __future__ import annotations

import ctypes
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from speechssm.bundle import open_bundle
from speechssm.engines import ort_cuda
from speechssm.engines.ort import OrtOptions
from speechssm.engines.ort_cuda import CAPTURE_RUNS, EAGER, OrtCudaGraph
from speechssm.errors import EngineError
from tests.engines.vendor_double import load_double


class RunOptions:
    def __init__(self) -> None:
        self.number = ""

    def add_run_config_entry(self, key: str, value: str) -> None:
        assert key == "gpu_graph_id"
        self.number = value


class Binding:
    """Remembers addresses; reads and writes them when the session runs."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple] = {}
        self.outputs: dict[str, tuple] = {}

    def bind_input(self, name, device, number, dtype, shape, address) -> None:
        assert (device, number) == ("cuda", 0)
        self.inputs[name] = (np.dtype(dtype), tuple(shape), address)

    def bind_output(self, name, device, number, dtype, shape, address) -> None:
        assert (device, number) == ("cuda", 0)
        self.outputs[name] = (np.dtype(dtype), tuple(shape), address)


def at(place: tuple) -> np.ndarray:
    kind, shape, address = place
    raw = (ctypes.c_uint8 * (prod(shape) * kind.itemsize)).from_address(address)
    return np.frombuffer(raw, kind).reshape(shape)


class Session:
    """Runs on the CPU what it says it runs on CUDA."""

    def __init__(self, path: str, settings: Any, providers: list) -> None:
        self.providers = providers
        self.real = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self.log: list[str] = []
        self.wrong_replays = False

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_inputs(self) -> list:
        return self.real.get_inputs()

    def get_outputs(self) -> list:
        return self.real.get_outputs()

    def io_binding(self) -> Binding:
        return Binding()

    def run(self, outputs: list[str], feeds: dict, options: RunOptions | None) -> list:
        assert options is not None
        assert options.number == EAGER
        return self.real.run(outputs, feeds)

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        self.log.append(options.number)
        feeds = {name: at(place).copy() for name, place in binding.inputs.items()}
        names = list(binding.outputs)
        for name, value in zip(names, self.real.run(names, feeds), strict=True):
            at(binding.outputs[name])[...] = value
        if self.wrong_replays and options.number != EAGER:
            at(binding.outputs["out_position"])[0] += 1


class Module:
    """As much of the onnxruntime module as the executor touches."""

    SessionOptions = onnxruntime.SessionOptions
    RunOptions = RunOptions
    InferenceSession = Session


@pytest.fixture
def graph(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> OrtCudaGraph:
    return make(tiny_bundle, monkeypatch)


def make(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> OrtCudaGraph:
    monkeypatch.setattr("speechssm.engines.ort.import_onnxruntime", lambda: Module)
    path, entry = open_bundle(tiny_bundle).graph("lm_step")
    device = load_double().HostDevice()
    return OrtCudaGraph("lm_step", path, entry, device, OrtOptions(provider="cuda", threads=1), **more)


def buffers(graph: OrtCudaGraph, make) -> tuple[dict, dict]:
    of = lambda v: make([a if isinstance(a, int) else 2 for a in v.axes], v.dtype)  # noqa: E731
    inputs, outputs = (
        {v.name: of(v) for v in graph.entry.inputs},
        {v.name: of(v) for v in graph.entry.outputs},
    )
    inputs["active"][:] = True
    inputs["temperature"][:] = inputs["top_p"][:] = 1
    return inputs, outputs


def test_a_pair_of_state_sets_is_one_captured_graph(graph: OrtCudaGraph) -> None:
    """S7: eager once, then an id of its own; two parities, two ids; state never leaves its buffers."""
    inputs, outputs = buffers(graph, graph.zeros)
    back = ({f"in_{s.name}": outputs[f"out_{s.name}"] for s in graph.entry.state},
            {f"out_{s.name}": inputs[f"in_{s.name}"] for s in graph.entry.state})  # fmt: skip
    there_and_back = [graph.bind(inputs, outputs), graph.bind(inputs | back[0], outputs | back[1])]
    for step in range(6):
        bound = there_and_back[step % 2]
        graph.run(bound)
        assert not bound.copied_in
        assert not bound.copied_out
        assert set(outputs["out_position"].tolist() + inputs["in_position"].tolist()) == {step, step + 1}
    session = graph._session
    first = [EAGER, *["0"] * CAPTURE_RUNS, "0"]
    second = [EAGER, *["1"] * CAPTURE_RUNS, "1"]
    assert session.log == [*first, *second, "0", "1", "0", "1"]
    assert session.providers[0][1]["enable_cuda_graph"] == "1"
    assert session.providers[0][1]["user_compute_stream"] == "77"


def test_a_wrong_replay_falls_back_and_says_so(graph: OrtCudaGraph, caplog: pytest.LogCaptureFixture) -> None:
    """S7: onnxruntime-genai #2452, silently wrong replays."""
    graph._session.wrong_replays = True
    inputs, outputs = buffers(graph, graph.zeros)
    bound = graph.bind(inputs, outputs)
    graph.run(bound)
    assert outputs["out_position"].tolist() == [1, 1]
    assert "differs from the eager step in out_position" in bound.eager_because
    assert "runs without a captured graph" in caplog.text
    before = len(graph._session.log)
    graph.run(bound)
    assert graph._session.log[before:] == [EAGER]


def test_foreign_arrays_are_copied(graph: OrtCudaGraph, rng: np.random.Generator) -> None:
    inputs, outputs = buffers(graph, np.zeros)
    bound = graph.bind(inputs, outputs)
    for _ in range(3):
        inputs["token"][:] = rng.integers(0, 64, 2)
        graph.run(bound)
        names = list(outputs)
        for name, value in zip(names, graph.call(inputs, names), strict=True):
            assert outputs[name].tobytes() == value.tobytes()
    assert len(bound.copied_in) == len(inputs)


def test_without_capture_every_run_is_eager(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make(tiny_bundle, monkeypatch, capture=False)
    bound = graph.bind(*buffers(graph, graph.zeros))
    graph.run(bound)
    graph.run(bound)
    assert graph._session.log == [EAGER, EAGER]
    assert "enable_cuda_graph" not in graph._session.providers[0][1]


def test_errors_are_sentences(graph: OrtCudaGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, outputs = buffers(graph, graph.zeros)
    with pytest.raises(EngineError, match="token is missing"):
        graph.bind({k: v for k, v in inputs.items() if k != "token"}, outputs)
    bound = graph.bind(inputs, outputs)

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory\nmore")

    monkeypatch.setattr(graph._session, "run_with_iobinding", fail)
    with pytest.raises(EngineError, match=r"graph lm_step failed: CUDA failure 2: out of memory$"):
        graph.run(bound)
    graph.close()
    with pytest.raises(EngineError, match="closed"):
        graph.run(bound)


def test_only_a_recorded_engine_skips_the_graph_check(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("speechssm.engines.ort.check_graph", lambda path, entry: seen.append(path))
    make(tiny_bundle, monkeypatch)
    make(tiny_bundle, monkeypatch, recorded=True)
    assert len(seen) == 1
    assert ort_cuda.CAPTURE_RUNS >= 2

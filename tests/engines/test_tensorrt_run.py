"""The TensorRT executor against a double of engine, context and device: what it binds, captures, checks and refuses.

The double runs the built graph on ONNX Runtime's CPU provider, so results are compared bit for bit with
the plain engine's; only the device is not real.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from speechssm.bundle import Bundle, open_bundle
from speechssm.engines.builder import Environment, build_engines, find_environment
from speechssm.engines.index import BuildSettings
from speechssm.engines.key import AxisRange
from speechssm.engines.loading import BundleGraphs, EngineGraphs
from speechssm.engines.ort import OrtOptions
from speechssm.engines.profiles import Profiles
from speechssm.engines.protocol import Graph
from speechssm.engines.tensorrt_run import TensorRTGraph, TensorRTRuntime
from speechssm.errors import EngineError
from speechssm.runtime.lm import LanguageModel, LMRows
from speechssm.runtime.model import Model
from speechssm.runtime.settings import SamplerSettings
from tests.engines.vendor_double import load_double, use_double

PROFILES = Profiles(rows=AxisRange(low=1, likely=2, high=6))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def built(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Engines with ping-pong state, the step with state in place, and the plugin's file."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "plugin.so").write_bytes(b"a library")
    with pytest.MonkeyPatch.context() as patch:
        use_double(patch)
        here = find_environment("tensorrt-rtx", folder / "plugin.so")
        plain = BuildSettings(engine="tensorrt-rtx", profiles=PROFILES)
        list(build_engines(bundle, plain, folder / "plain", here))
        aliased = plain.model_copy(update={"aliased": True})
        list(build_engines(bundle, aliased, folder / "aliased", here, graphs=["lm_step"]))
    return folder / "plain", folder / "aliased", folder / "plugin.so"


class Rig:
    """A fresh device and vendor module, and the graphs of a folder on them."""

    def __init__(self, bundle: Bundle, folder: Path, plugin: Path) -> None:
        self.api: ModuleType = load_double()
        self.device = self.api.HostDevice()
        self.bundle = bundle
        self.graphs = EngineGraphs(bundle, folder, plugin, device=self.device, module=self.api)

    def step(self) -> TensorRTGraph:
        graph = self.graphs.open("lm_step")
        assert isinstance(graph, TensorRTGraph)
        assert isinstance(graph, Graph)
        return graph

    def language_model(self, step: Graph) -> LanguageModel:
        part = self.bundle.manifest.lm
        schema = self.bundle.manifest.graphs["lm_step"].state
        plain = BundleGraphs(self.bundle, OrtOptions(threads=1))
        return LanguageModel(step, lambda: plain("lm_chunk"), schema, part.shape.vocab, part.k_max, 1e6)


@pytest.fixture(params=["ping-pong", "in place"])
def rig(request: pytest.FixtureRequest, bundle: Bundle, built: tuple[Path, Path, Path]) -> Rig:
    plain, aliased, plugin = built
    return Rig(bundle, plain if request.param == "ping-pong" else aliased, plugin)


@pytest.fixture
def plain(bundle: Bundle, built: tuple[Path, Path, Path]) -> Rig:
    return Rig(bundle, built[0], built[2])


def speak(lm: LanguageModel, steps: int, rows: int = 3) -> tuple[list[tuple[int, ...]], dict[str, bytes]]:
    """Tokens of ``rows`` streams that pause and come back, and the state they end in."""
    pool = LMRows(lm, rows)
    for row in range(rows):
        pool.start(row, row, SamplerSettings(0.9, 20, 0.95), seed=row)
        pool.prefill(row, [5, 6, 7][: row + 1])
    said = []
    for step in range(steps):
        pool.active[:] = [True, step % 3 > 0, step % 5 > 0][:rows]
        said.append(tuple(int(t) for t in pool.step().tokens))
        assert np.isfinite(pool.step(rows).logprobs[pool.active]).all() if step == 4 else True
    return said, {name: array.tobytes() for name, array in pool.state.current.items()}


def expected(bundle: Bundle, steps: int, rows: int = 3) -> tuple[list[tuple[int, ...]], dict[str, bytes]]:
    graphs = BundleGraphs(bundle, OrtOptions(threads=1))
    part = bundle.manifest.lm
    lm = LanguageModel(
        graphs("lm_step"), lambda: graphs("lm_chunk"), bundle.manifest.graphs["lm_step"].state, part.shape.vocab,
        part.k_max, 1e6,
    )  # fmt: skip
    return speak(lm, steps, rows)


# ---- what it does --------------------------------------------------------------------------------------


def test_s7_replayed_steps_equal_eager_ones_bit_for_bit(rig: Rig, bundle: Bundle) -> None:
    """S7: tokens and every state tensor, ping-pong and in place; one captured graph for each parity."""
    step = rig.step()
    assert speak(rig.language_model(step), 24) == expected(bundle, 24)
    assert rig.device.log.count("capture") == 2
    assert rig.device.log.count("replay") == 25  # 24 steps and the one more that speak() makes
    assert rig.device.log.count("run") == 2, "eager once for each parity, to compare with"
    assert all(b.eager_because is None for b in step._bound)
    assert len({id(b.context) for b in step._bound}) == 2


def test_s7_a_vendor_that_executes_while_it_captures_does_not_move_the_state(
    rig: Rig, bundle: Bundle
) -> None:
    """S7: what onnxruntime #32243 does."""
    rig.device.executes_while_capturing = True
    assert speak(rig.language_model(rig.step()), 12) == expected(bundle, 12)
    assert rig.device.log.count("capture") == 2


@pytest.mark.parametrize(
    "fault", ["begin_capture", "end_capture", "launch", "wrong replay", "replay of nothing"]
)
def test_s7_a_replay_that_is_not_the_eager_step_is_not_used_and_that_is_said(
    fault: str, rig: Rig, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """S7: the stream goes on eagerly, with the same bits as if nothing had been tried."""
    step = rig.step()
    if fault == "wrong replay":

        def spoil() -> None:
            (running,) = (b for b in step._bound if b.captured is not None)
            running.outputs["out_L04_conv"].view(np.int32)[0, 0, 0] ^= 1

        rig.device.spoil_replay = spoil
    elif fault == "replay of nothing":
        rig.device.launch = lambda captured: rig.device.log.append("replay")
    else:
        rig.device.fails = {fault}
    with caplog.at_level(logging.WARNING, "speechssm.engines"):
        assert speak(rig.language_model(step), 12) == expected(bundle, 12)
    reasons = [b.eager_because for b in step._bound]
    wanted = (
        "its replay differs from the eager step in" if "replay" in fault else f"cannot {fault}: CUDA error 2"
    )
    assert all(reason and wanted in reason for reason in reasons), reasons
    assert "graph lm_step runs without a captured graph" in caplog.text
    assert len(caplog.records) == len(step._bound) == 2, "said once for each parity"
    assert all(b.captured is None for b in step._bound)


def test_a_capture_is_put_off_until_the_stream_can_be_captured(plain: Rig, bundle: Bundle) -> None:
    """TensorRT-RTX compiles kernels during the first steps."""
    ready = iter([False] * 6)
    plain.api.Context.is_stream_capturable = lambda self, stream: next(ready, True)
    assert speak(plain.language_model(plain.step()), 12) == expected(bundle, 12)
    assert plain.device.log[:6] == ["run"] * 6
    assert plain.device.log.count("capture") == 2


def test_a_device_that_cannot_capture_runs_eagerly(plain: Rig, bundle: Bundle) -> None:
    plain.device.captures = False
    assert speak(plain.language_model(plain.step()), 8) == expected(bundle, 8)
    assert set(plain.device.log) == {"run"}


def test_inputs_are_paired_by_name_whatever_the_engines_order(plain: Rig) -> None:
    """The double lists its tensors in reverse; every address set is that of the array of that name."""
    step = plain.step()
    inputs, outputs = buffers(step, 2)
    bound = step.bind(inputs, outputs)
    for name, array in (inputs | outputs).items():
        assert bound.context.addresses[name] == array.ctypes.data, name
        if name in inputs:
            assert bound.context.shapes[name] == array.shape
    assert bound.context.memory == (step._scratch, 1024)


def buffers(step: TensorRTGraph, rows: int, make: Callable | None = None) -> tuple[dict, dict]:
    make = make or step.zeros
    of = lambda v: make([a if isinstance(a, int) else rows for a in v.axes], v.dtype)  # noqa: E731
    inputs = {v.name: of(v) for v in step.entry.inputs}
    outputs = {v.name: of(v) for v in step.entry.outputs}
    for name in step.aliased:
        outputs[f"out_{name}"] = inputs[f"in_{name}"]
    inputs["temperature"][:] = inputs["top_p"][:] = 1
    inputs["active"][:] = True
    return inputs, outputs


def test_state_in_place_is_one_array_in_both_sets(bundle: Bundle, built: tuple[Path, Path, Path]) -> None:
    rig = Rig(bundle, built[1], built[2])
    step = rig.step()
    lru = {s.name for s in bundle.manifest.graphs["lm_step"].state if s.kind == "lru"}
    assert step.aliased == lru
    first, second = LMRows(rig.language_model(step), 2).state.sets
    assert {name for name in first if first[name] is second[name]} == lru


@pytest.mark.parametrize("which", ["front of ours", "foreign"])
def test_any_array_can_be_bound(which: str, rig: Rig, rng: np.random.Generator) -> None:
    """Arrays of the caller's own are copied in and out; the front of one of ours is used where it lies."""
    step = rig.step()
    if which == "foreign":
        inputs, outputs = buffers(step, 2, lambda shape, dtype: np.zeros(shape, dtype))
    else:
        inputs, outputs = ({k: v[:2] for k, v in side.items()} for side in buffers(step, 5))
    bound = step.bind(inputs, outputs)
    assert bool(bound.copied_in) == bool(bound.copied_out) == (which == "foreign")
    for _ in range(4):
        inputs["token"][:] = rng.integers(0, 64, 2)
        before = {name: array.copy() for name, array in inputs.items()}
        step.run(bound)
        names = list(outputs)
        for name, value in zip(names, step.call(before, names), strict=True):
            assert outputs[name].tobytes() == value.tobytes(), name


def test_calls_of_changing_shape_equal_the_plain_engines(
    plain: Rig, bundle: Bundle, rng: np.random.Generator
) -> None:
    """Every other graph, larger and smaller than before, with the scalar that sizes depend on."""
    cpu = BundleGraphs(bundle, OrtOptions(threads=1))
    for name in ("lm_chunk", "codec_decode", "codec_encode", "acoustic_prompt", "acoustic"):
        ours, theirs = plain.graphs.open(name), cpu(name)
        outputs = [v.name for v in ours.entry.outputs]
        for rows, size in ((1, 3), (2, 7), (1, 2)):
            tokens = 50 + size if name == "acoustic" else size
            sizes = {"b": rows, "t": tokens, "f": 2 * tokens if name == "acoustic" else size, "n": 320 * size}
            inputs = {}
            for value in ours.entry.inputs:
                shape = [a if isinstance(a, int) else sizes[a] for a in value.axes]
                array = rng.random(shape) if value.dtype == "float32" else rng.integers(0, 2, shape)
                inputs[value.name] = np.asarray(array, value.dtype)
            if "lengths" in inputs:
                inputs["lengths"][:] = size
            for a, b in zip(ours.call(inputs, outputs), theirs.call(inputs, outputs), strict=True):
                assert a.tobytes() == b.tobytes(), name
        ours.close()
    assert plain.device.log.count("capture") == 0, "only steps are captured"


def test_a_model_speaks_the_same_on_engines(plain: Rig, bundle: Bundle) -> None:
    """Prompt to samples: every stage behind the one protocol."""
    noise = (0.1 * np.random.default_rng().standard_normal(16_000)).astype(np.float32)
    said = []
    for graphs in (
        BundleGraphs(bundle, OrtOptions(threads=1), plain.graphs),
        BundleGraphs(bundle, OrtOptions(threads=1)),
    ):
        model = Model(bundle.manifest, bundle.digest, graphs)
        said.append(model.generate(noise, rate_hz=16_000, seconds=1, seed=4).audio)
        graphs.close()
    assert said[0].tobytes() == said[1].tobytes()
    assert plain.device.scratch == {}, "closing gives the memory back"


# ---- what it refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [(7, r"token has 7 along b, and the engine was built for 1 to 6.*--rows"), (0, "token has 0 along b")],
)
def test_sizes_outside_the_profile(rows: int, message: str, plain: Rig) -> None:
    step = plain.step()
    with pytest.raises(EngineError, match=message):
        step.bind(*buffers(step, rows))


def test_wrong_arrays_are_named(plain: Rig) -> None:
    step = plain.step()
    inputs, outputs = buffers(step, 2)
    for changed, message in (
        ({"token": inputs["token"].astype(np.int32)}, "token must be C-contiguous int64"),
        ({"in_L00_lru": step.zeros((3, 40), "float32")}, "in_L00_lru has 3 along b, expected 2"),
        ({"extra": inputs["token"]}, "extra is not of this graph"),
    ):
        with pytest.raises(EngineError, match=message):
            step.bind(inputs | changed, outputs)
        with pytest.raises(EngineError, match=message):
            step.call(inputs | changed, list(outputs))
    with pytest.raises(EngineError, match="active is missing"):
        step.bind({k: v for k, v in inputs.items() if k != "active"}, outputs)


def test_state_in_place_wants_one_buffer(bundle: Bundle, built: tuple[Path, Path, Path]) -> None:
    step = Rig(bundle, built[1], built[2]).step()
    inputs, outputs = buffers(step, 2)
    outputs["out_L00_lru"] = step.zeros((2, 40), "float32")
    with pytest.raises(
        EngineError, match="updates L00_lru in place: bind in_L00_lru and out_L00_lru to one buffer"
    ):
        step.bind(inputs, outputs)


def test_what_the_engine_refuses_is_said_in_its_words(plain: Rig) -> None:
    step = plain.step()
    engine = step._engine
    inputs, outputs = buffers(step, 2)
    engine.refuses_shape = {"token"}
    with pytest.raises(EngineError, match="does not take token of shape"):
        step.bind(inputs, outputs)
    engine.refuses_shape, engine.refuses_address = set(), {"out_L01_conv"}
    with pytest.raises(EngineError, match="does not take a buffer for out_L01_conv"):
        step.bind(inputs, outputs)
    engine.refuses_address, engine.no_context = set(), True
    with pytest.raises(EngineError, match=r"no execution context \(createExecutionContext: .*out of memory"):
        step.bind(inputs, outputs)
    engine.no_context = False
    bound = step.bind(inputs, outputs)
    engine.fails = True
    with pytest.raises(EngineError, match=r"graph lm_step failed \(enqueueV3: .*illegal memory access"):
        step.run(bound)
    with pytest.raises(EngineError, match="graph lm_step failed"):
        step.call(inputs, list(outputs))
    engine.fails = False
    step.run(bound)
    assert bound.captured is not None, "a failed first step is tried again"


def test_shapes_that_are_never_set(plain: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    step = plain.step()
    monkeypatch.setattr(plain.api.Context, "infer_shapes", lambda self: ["level"])
    with pytest.raises(EngineError, match="cannot run: level is not set"):
        step.bind(*buffers(step, 2))
    with pytest.raises(EngineError, match="cannot run: level is not set"):
        step.call(buffers(step, 2)[0], ["token_out"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.values.pop("token"), "disagree about token"),
        (lambda e: e.input_names.remove("active"), "has active as output bool"),
        (lambda e: setattr(e, "get_tensor_dtype", lambda name: "float16"), "as .*put float16 of rank"),
        (lambda e: setattr(e, "get_tensor_shape", lambda name: (-1, 9, 9, 9, 9)), "of rank 5"),
        (
            lambda e: setattr(
                e, "get_aliased_input_tensor", lambda n: "in_L00_conv" if n == "out_L00_lru" else None
            ),
            "writes out_L00_lru over in_L00_conv, which is not its state",
        ),
    ],
)
def test_an_engine_of_another_graph_is_refused(change, message: str, plain: Rig) -> None:
    runtime = plain.graphs._runtime
    assert runtime is not None
    path = next(
        p
        for p in plain.graphs.folder.glob("*/engine.bin")
        if b"lm_step" in (p.parent / "record.json").read_bytes()
    )
    engine = runtime.engine(path)
    change(engine)
    with pytest.raises(EngineError, match=message):
        TensorRTGraph("lm_step", plain.bundle.graph("lm_step")[1], runtime, engine, plain.device)


def test_an_engine_that_cannot_be_read(plain: Rig, tmp_path: Path) -> None:
    runtime = plain.graphs._runtime
    assert runtime is not None
    (tmp_path / "engine.bin").write_bytes(b"not an engine")
    with pytest.raises(
        EngineError, match=r"does not take the engine .*magic tag does not match.*speechssm explain"
    ):
        runtime.engine(tmp_path / "engine.bin")
    with pytest.raises(EngineError, match="cannot be read"):
        runtime.engine(tmp_path / "missing.bin")


def test_no_memory(plain: Rig) -> None:
    plain.device.fails = {"allocate"}
    with pytest.raises(EngineError, match="cannot allocate"):
        plain.step()


def test_a_plugin_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot load the plugin .*speechssm ext build tensorrt"):
        TensorRTRuntime("tensorrt-rtx", tmp_path / "missing.so", load_double())


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(EngineError, match=r"needs tensorrt in this Python.*speechssm\[trt\]"):
        TensorRTRuntime("tensorrt", None)


def test_a_closed_graph_says_so_and_gives_everything_back(plain: Rig) -> None:
    step = plain.step()
    inputs, outputs = buffers(step, 2)
    bound = step.bind(inputs, outputs)
    step.run(bound)
    step.close()
    step.close()
    assert plain.device.scratch == {}
    assert plain.device.log.count("release") == 1
    for use in (
        lambda: step.run(bound),
        lambda: step.bind(inputs, outputs),
        lambda: step.call(inputs, ["health"]),
    ):
        with pytest.raises(EngineError, match="graph lm_step was closed"):
            use()


def test_engines_that_do_not_fit_are_not_deserialised(bundle: Bundle, built: tuple[Path, Path, Path]) -> None:
    """Another version or GPU is found out before the vendor sees a byte."""
    plain, _, plugin = built
    api = load_double()
    api.__version__ = "1.8.0"
    api.Runtime.deserialize_cuda_engine = None
    newer = EngineGraphs(bundle, plain, plugin, device=api.HostDevice(), module=api)
    with pytest.raises(
        EngineError, match=r"built by version 1.7.1.116, and version 1.8.0 is installed; run 'speechssm build"
    ):
        newer.open("lm_step")
    old = load_double()
    old.HostDevice.architecture = "sm_75"
    with pytest.raises(EngineError, match="built for sm_80 and later, and this GPU is sm_75"):
        EngineGraphs(bundle, plain, plugin, device=old.HostDevice(), module=old).open("lm_step")


def test_memory_that_was_freed_is_no_longer_ours(plain: Rig) -> None:
    step = plain.step()
    array = step.zeros((4, 4), "float32")
    view = array[:2]
    assert step._is_ours(view)
    address = array.ctypes.data
    del array
    assert address in step._ours
    del view
    assert address not in step._ours


def test_the_environment_is_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    use_double(monkeypatch)
    here = find_environment("tensorrt-rtx", None)
    assert isinstance(here, Environment)
    assert here.version == "1.7.1.116"

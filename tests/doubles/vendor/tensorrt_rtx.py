"""A double of TensorRT-RTX's Python module: an engine is a model that ONNX Runtime runs on the CPU.

It takes what the real module takes in the calls this project makes, and refuses what the real one was
seen to refuse (tests marked ``rtx`` hold the real one to the same). ``FAKE_TENSORRT`` in the environment
of a build chooses what goes wrong: crash, exit, refuse, noise, no-plugins.

Engines run on :class:`HostDevice`: "device" addresses are host addresses, and work on its stream happens
at once unless it is being captured.
"""

from __future__ import annotations

import ctypes
import enum
import io
import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import onnx

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "1.7.1.116")
FAULT = os.environ.get("FAKE_TENSORRT", "")
ALIASED = "aliased"


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class BuilderFlag(enum.Enum):
    TF32 = 0


class PreviewFeature(enum.Enum):
    ALIASED_PLUGIN_IO_10_03 = 0


class ComputeCapability(enum.Enum):
    SM80, SM86, SM89, SM120, SM121 = range(5)


class NetworkDefinitionCreationFlag(enum.Enum):
    STRONGLY_TYPED = 1

    def __int__(self) -> int:
        return self.value


def nptype(dtype: str) -> type:
    return np.dtype(dtype).type


# ---- building ----------------------------------------------------------------------------------------


class Registry:
    def __init__(self) -> None:
        self.all_creators: list[str] = []

    def load_library(self, path: str) -> object | None:
        if not os.path.exists(path) or FAULT == "no-plugins":
            return None
        self.all_creators += ["RGLRUStep", "RGLRUScan"]
        return object()


class Kind:
    def __init__(self, name: str) -> None:
        self.type = self
        self.name = name


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.is_shape_tensor = value.name == "level"


class Network:
    model: onnx.ModelProto
    folder: Path
    num_layers = num_inputs = 0

    def get_layer(self, i: int) -> Kind:
        node = self.model.graph.node[i]
        return Kind("PLUGIN_V3" if node.domain == "speechssm" and not self.model.functions else node.op_type)

    def get_input(self, i: int) -> Tensor:
        return Tensor(self.model.graph.input[i])


class ParserError:
    def __init__(self, node: str, text: str) -> None:
        self.node, self.text = node, text

    def node_name(self) -> str:
        return self.node

    def desc(self) -> str:
        return self.text


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network, self.errors = network, list[ParserError]()
        self.registry = network.registry  # type: ignore[attr-defined]

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, i: int) -> ParserError:
        return self.errors[i]

    def parse_from_file(self, path: str) -> bool:
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            if (
                node.domain == "speechssm"
                and not model.functions
                and node.op_type not in self.registry.all_creators
            ):
                self.errors.append(
                    ParserError(
                        node.name, "Plugin not found, are the plugin name, version, and namespace correct?"
                    )
                )
                return False
        self.network.model, self.network.folder = model, Path(path).parent
        self.network.num_layers, self.network.num_inputs = len(model.graph.node), len(model.graph.input)
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple] = {}
        self.values: dict[str, tuple] = {}

    def set_shape(self, name: str, *shapes: list[int]) -> None:
        self.shapes[name] = tuple(map(tuple, shapes))

    def set_shape_input(self, name: str, *values: list[int]) -> None:
        self.values[name] = values


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class Config:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.features: set[PreviewFeature] = set()
        self.capabilities: dict[int, ComputeCapability] = {}
        self.num_compute_capabilities = 0
        self.profiles: list[Profile] = []
        self.cache: TimingCache | None = None
        self.progress_monitor: IProgressMonitor | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_preview_feature(self, feature: PreviewFeature, on: bool) -> None:
        self.features.add(feature)

    def set_compute_capability(self, capability: ComputeCapability, i: int) -> None:
        self.capabilities[i] = capability

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self.cache
        return self.cache


class HostMemory(bytearray):
    @property
    def nbytes(self) -> int:
        return len(self)


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.registry = logger, Registry()

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << 1, "networks are strongly typed"
        network = Network()
        network.registry = self.registry  # type: ignore[attr-defined]
        return network

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        say = self.logger.log  # type: ignore[attr-defined]
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building", None, 2)  # type: ignore[attr-defined]
            monitor.step_complete("Building", 0)  # type: ignore[attr-defined]
            monitor.phase_finish("Building")  # type: ignore[attr-defined]
        if FAULT == "crash":
            print("about to fall", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if FAULT == "exit":
            print("terminate called", file=sys.stderr, flush=True)
            os._exit(134)
        if FAULT == "noise":
            os.write(1, b"{not an event\n")
        if FAULT == "refuse":
            say(ILogger.Severity.ERROR, "Could not find any implementation for node L00/MatMul")
            return None
        (profile,) = config.profiles
        for value in network.model.graph.input:
            dims = value.type.tensor_type.shape.dim
            if any(d.dim_param for d in dims) and value.name not in profile.shapes:
                say(ILogger.Severity.ERROR, f"Optimization profile 0 is missing values for {value.name}")
                return None
            if value.name == "level" and value.name not in profile.values:
                say(
                    ILogger.Severity.ERROR,
                    "Optimization profile 0 is missing values for shape input tensor level",
                )
                return None
        wants = any(a.name == ALIASED and a.i for n in network.model.graph.node for a in n.attribute)
        if wants and PreviewFeature.ALIASED_PLUGIN_IO_10_03 not in config.features:
            say(ILogger.Severity.ERROR, "aliased plugin I/O needs ALIASED_PLUGIN_IO_10_03")
            return None
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            file.writestr("model.onnx", network.model.SerializeToString())
            file.write(network.folder / "weights.bin", "weights.bin")
            file.writestr("engine.json", json.dumps({"profile": profile.shapes, "aliased": wants}))
        return HostMemory(packed.getvalue())


# ---- running -----------------------------------------------------------------------------------------


class HostDevice:
    """A :class:`speechssm.engines.device.Device` whose memory is the host's."""

    name, architecture, stream, captures = "host", "sm_89", 77, True
    current: HostDevice

    def __init__(self) -> None:
        HostDevice.current = self
        self.recording: list[Callable[[], None]] | None = None
        self.scratch: dict[int, np.ndarray] = {}
        self.log: list[str] = []
        self.executes_while_capturing = False
        self.fails: set[str] = set()
        self.spoil_replay: Callable[[], None] | None = None

    def zeros(self, shape, dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def allocate(self, size_bytes: int) -> int:
        self._may_fail("allocate")
        memory = np.zeros(size_bytes, np.uint8)
        self.scratch[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address: int) -> None:
        del self.scratch[address]

    def synchronize(self) -> None:
        assert self.recording is None, "waiting for a stream that is being captured"

    def submit(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            self.log.append("run")
            work()
            return
        self.recording.append(work)
        if self.executes_while_capturing:
            work()

    def begin_capture(self) -> None:
        self._may_fail("begin_capture")
        self.recording = []

    def end_capture(self) -> list[Callable[[], None]]:
        captured, self.recording = self.recording, None
        self._may_fail("end_capture")
        assert captured is not None
        self.log.append("capture")
        return captured

    def launch(self, captured: list[Callable[[], None]]) -> None:
        self._may_fail("launch")
        self.log.append("replay")
        for work in captured:
            work()
        if self.spoil_replay is not None:
            self.spoil_replay()

    def release(self, captured: list[Callable[[], None]]) -> None:
        self.log.append("release")

    def _may_fail(self, what: str) -> None:
        from speechssm.errors import EngineError

        if what in self.fails:
            raise EngineError(f"cannot {what}: CUDA error 2, out of memory")


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.refuses: set[str] = set()
        self.fails = False

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        self.shapes[name] = shape
        return name not in self.engine.refuses_shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.values
        self.addresses[name] = address
        return name not in self.engine.refuses_address

    def infer_shapes(self) -> list[str]:
        return [n for n in self.engine.input_names if n not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for given in self.engine.input_names:
            for axis, size in zip(self.engine.axes(given), self.shapes[given], strict=True):
                if isinstance(axis, str):
                    sizes[axis] = size
        if "f" in sizes:
            sizes.setdefault("n", 320 * sizes["f"])
        if "n" in sizes:
            sizes.setdefault("f", sizes["n"] // 320)
            sizes.setdefault("t", -(-sizes["n"] // 640))
        return tuple(a if isinstance(a, int) else sizes[a] for a in self.engine.axes(name))

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostDevice.stream
        assert self.memory is not None, "the context has no scratch memory"
        if self.engine.fails:
            self.engine.say(
                "enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
            )
            return False
        HostDevice.current.submit(self._execute)
        return True

    def _execute(self) -> None:
        feeds = {n: self._array(n, self.shapes[n]).copy() for n in self.engine.input_names}
        results = self.engine.session.run(self.engine.output_names, feeds)
        for name, value in zip(self.engine.output_names, results, strict=True):
            self._array(name, value.shape)[...] = value

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = np.dtype(self.engine.get_tensor_dtype(name))
        size = prod(shape) * kind.itemsize
        buffer = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(buffer, kind).reshape(shape)


class Engine:
    def __init__(self, content: bytes, say: Callable[[str], None]) -> None:
        import onnxruntime  # not needed to build, and slow to import

        from speechssm.export.graphs.rglru_function import scan_function, step_function

        packed = zipfile.ZipFile(io.BytesIO(content))
        self.about = json.loads(packed.read("engine.json"))
        model = onnx.load_from_string(packed.read("model.onnx"))
        weights = packed.read("weights.bin")
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                at = {e.key: e.value for e in tensor.external_data}
                del tensor.external_data[:]
                tensor.data_location = onnx.TensorProto.DEFAULT
                start = int(at["offset"])
                tensor.raw_data = weights[start : start + int(at["length"])]
        for node in model.graph.node:
            if node.domain == "speechssm":
                kept = [a for a in node.attribute if a.name != ALIASED]
                del node.attribute[:]
                node.attribute.extend(kept)
        if not model.functions and any(n.domain == "speechssm" for n in model.graph.node):
            model.functions.extend([step_function(), scan_function()])  # stands for the plugin
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.say = say
        # Names come in an order of the engine's own.
        self.values = {v.name: v for v in reversed([*model.graph.input, *model.graph.output])}
        self.input_names = [v.name for v in model.graph.input]
        self.output_names = [v.name for v in model.graph.output]
        self.refuses_shape: set[str] = set()
        self.refuses_address: set[str] = set()
        self.fails = False
        self.no_context = False
        self.device_memory_size_v2 = 1024
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    def get_tensor_name(self, i: int) -> str:
        return list(self.values)[i]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        kind = self.values[name].type.tensor_type.elem_type
        return onnx.helper.tensor_dtype_to_np_dtype(kind).name

    def axes(self, name: str) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in self.values[name].type.tensor_type.shape.dim]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(a, str) else a for a in self.axes(name))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        fixed = self.get_tensor_shape(name)
        return [tuple(s) for s in self.about["profile"].get(name, [fixed] * 3)]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        state = name.removeprefix("out_")
        return f"in_{state}" if self.about["aliased"] and state.endswith("_lru") and name != state else None

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context | None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self.no_context:
            self.say("createExecutionContext: Error Code 1: Cuda Runtime (out of memory)")
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger, self.registry = logger, Registry()

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        def say(text: str) -> None:
            self.logger.log(ILogger.Severity.ERROR, text)  # type: ignore[attr-defined]

        try:
            return Engine(content, say)
        except zipfile.BadZipFile:
            say("deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)")
            return None

"""The two adapters to a GPU, without one: errors in words, and every call on a double of each package."""

from __future__ import annotations

import ctypes
import enum
import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speechssm.engines.device import device_architecture, open_device
from speechssm.errors import EngineError


class Status(enum.IntEnum):
    OK = 0
    MEMORY = 2
    CAPTURE = 901


class Runtime(ModuleType):
    """cuda.bindings.runtime over host memory: every call answers (status, values...)."""

    cudaMemAttachGlobal = 1
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )

    def __init__(self) -> None:
        super().__init__("runtime")
        self.memory: dict[int, Any] = {}
        self.log: list[tuple] = []
        self.status: dict[str, Status] = {}
        self.devices = 1

    def answer(self, name: str, *values: Any) -> tuple:
        self.log.append((name, *values))
        return (self.status.get(name, Status.OK), *values)

    def cudaGetErrorString(self, status: Status) -> tuple:
        return Status.OK, status.name.lower().encode()

    def cudaGetDeviceCount(self) -> tuple:
        return self.answer("count", self.devices)

    def cudaDeviceGetAttribute(self, which: str, device: int) -> tuple:
        return self.answer("attribute", {"major": 9, "minor": 0}[which])

    def cudaGetDeviceProperties(self, device: int) -> tuple:
        return self.answer("properties", SimpleNamespace(name=b"NVIDIA H100\0\0"))

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple:
        return self.answer("stream", 42)

    def cudaMallocManaged(self, size: int, flags: int) -> tuple:
        buffer = (ctypes.c_uint8 * size)(*b"\xff" * size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return self.answer("managed", ctypes.addressof(buffer))

    def cudaMalloc(self, size: int) -> tuple:
        buffer = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(buffer)] = buffer
        return self.answer("malloc", ctypes.addressof(buffer))

    def cudaFree(self, address: int) -> tuple:
        del self.memory[address]
        return self.answer("free")

    def cudaStreamSynchronize(self, stream: int) -> tuple:
        return self.answer("synchronize")

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple:
        assert (stream, mode) == (42, "thread")
        return self.answer("begin")

    def cudaStreamEndCapture(self, stream: int) -> tuple:
        return self.answer("end", "graph")

    def cudaGraphInstantiate(self, graph: str, flags: int) -> tuple:
        return self.answer("instantiate", "executable")

    def cudaGraphDestroy(self, graph: str) -> tuple:
        return self.answer("destroy")

    def cudaGraphLaunch(self, executable: str, stream: int) -> tuple:
        assert (executable, stream) == ("executable", 42)
        return self.answer("launch")

    def cudaGraphExecDestroy(self, executable: str) -> tuple:
        return self.answer("release")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    bindings, cuda = ModuleType("cuda.bindings"), ModuleType("cuda")
    bindings.runtime = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    return made


def test_memory_streams_and_graphs(runtime: Runtime) -> None:
    device = open_device()
    assert (device.name, device.architecture, device.stream) == ("NVIDIA H100", "sm_90", 42)
    assert device_architecture() == "sm_90"
    array = device.zeros((3, 5), "int64")
    assert array.shape == (3, 5)
    assert not array.any(), "managed memory comes with anything in it"
    assert array.ctypes.data in runtime.memory
    view = array[1:]
    del array
    gc.collect()
    view[...] = 7
    assert len(runtime.memory) == 1, "a view keeps the memory"
    del view
    gc.collect()
    assert runtime.memory == {}
    empty = device.zeros((0, 4), "float32")
    assert empty.size == 0
    address = device.allocate(256)
    device.free(address)
    device.begin_capture()
    captured = device.end_capture()
    assert ("destroy",) in runtime.log
    device.launch(captured)
    device.synchronize()
    device.release(captured)


@pytest.mark.parametrize(
    ("call", "use", "message"),
    [
        (
            "managed",
            lambda d: d.zeros((4,), "float32"),
            "cannot allocate 16 bytes of managed memory: CUDA error 2",
        ),
        ("malloc", lambda d: d.allocate(99), "cannot allocate 99 bytes on the GPU: CUDA error 2, memory"),
        ("synchronize", lambda d: d.synchronize(), "cannot finish the work on the GPU"),
        ("begin", lambda d: d.begin_capture(), "cannot begin capturing"),
        ("end", lambda d: d.end_capture(), "cannot end capturing"),
        ("instantiate", lambda d: d.end_capture(), "cannot make the captured graph ready"),
        ("launch", lambda d: d.launch("executable"), "cannot launch the captured graph"),
    ],
)
def test_every_failure_is_a_sentence(call: str, use, message: str, runtime: Runtime) -> None:
    device = open_device()
    runtime.status[call] = Status.MEMORY
    with pytest.raises(EngineError, match=message):
        use(device)


def test_no_gpu_no_driver_no_package(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.devices = 0
    with pytest.raises(EngineError, match="CUDA finds no GPU"):
        open_device()
    runtime.status["count"] = Status.MEMORY
    with pytest.raises(EngineError, match="cannot look for a GPU: CUDA error 2"):
        open_device()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError, match=r"needs cuda-python.*speechssm\[gpu\]"):
        open_device()
    assert device_architecture() is None


def test_the_real_package_without_a_driver() -> None:
    """Where cuda-python is installed and no GPU is: its own words, not a traceback."""
    pytest.importorskip("cuda.bindings.runtime")
    if device_architecture() is None:
        with pytest.raises(EngineError, match="CUDA"):
            open_device()


# ---- PyCUDA -----------------------------------------------------------------------------------------------


class Driver(ModuleType):
    """pycuda.driver over host memory."""

    class Error(Exception):
        pass

    mem_attach_flags = SimpleNamespace(GLOBAL=1)

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.fails: set[str] = set()
        self.pushed = 0
        driver = self

        class Stream:
            handle = 9

            def synchronize(self) -> None:
                driver.may_fail("synchronize")

        class Device:
            def __init__(self, number: int) -> None: ...

            def compute_capability(self) -> tuple[int, int]:
                return 8, 9

            def name(self) -> str:
                return "NVIDIA L4"

            def retain_primary_context(self) -> Any:
                return SimpleNamespace(push=lambda: setattr(driver, "pushed", driver.pushed + 1))

        class Memory:
            def __init__(self, size: int) -> None:
                self.freed = False

            def __int__(self) -> int:
                return id(self)

            def free(self) -> None:
                self.freed = True

        self.Stream, self.Device, self.Memory = Stream, Device, Memory

    def may_fail(self, what: str) -> None:
        if what in self.fails:
            raise Driver.Error(f"{what} failed: out of memory")

    def init(self) -> None:
        self.may_fail("init")

    def managed_zeros(self, shape: tuple, dtype: Any, mem_flags: int) -> np.ndarray:
        self.may_fail("managed_zeros")
        return np.zeros(shape, dtype)

    def mem_alloc(self, size: int) -> Any:
        self.may_fail("mem_alloc")
        return self.Memory(size)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made, package = Driver(), ModuleType("pycuda")
    package.driver = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", made)
    return made


def test_pycuda_stands_behind_the_same_protocol(driver: Driver) -> None:
    device = open_device("pycuda")
    assert (device.name, device.architecture, device.stream, device.captures) == (
        "NVIDIA L4",
        "sm_89",
        9,
        False,
    )
    assert driver.pushed == 1, "TensorRT shares the primary context"
    assert device.zeros((2, 3), "float32").shape == (2, 3)
    device.free(device.allocate(64))
    device.synchronize()
    for use in (device.begin_capture, device.end_capture, lambda: device.launch(None)):
        with pytest.raises(EngineError, match="use cuda-python"):
            use()
    device.release(None)


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("managed_zeros", lambda d: d.zeros((2,), "float32")),
        ("mem_alloc", lambda d: d.allocate(8)),
        ("synchronize", lambda d: d.synchronize()),
    ],
)
def test_pycudas_failures_are_sentences(call: str, use, driver: Driver) -> None:
    device = open_device("pycuda")
    driver.fails = {call}
    with pytest.raises(EngineError, match="out of memory"):
        use(device)


def test_pycuda_without_a_gpu_or_package(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.fails = {"init"}
    with pytest.raises(EngineError, match="PyCUDA finds no usable GPU"):
        open_device("pycuda")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match=r"PyCUDA cannot be used.*speechssm\[pycuda\]"):
        open_device("pycuda")

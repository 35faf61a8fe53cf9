"""What is asked of a GPU: memory that both sides see, one stream, and captured graphs.

Two adapters stand behind one small protocol: cuda-python (:mod:`.device_cuda`) and PyCUDA
(:mod:`.device_pycuda`). Arrays that a caller fills and reads are *managed* memory, so numpy sees them
where they lie and state that nobody touches never leaves the device. Tests put plain host memory behind
the same protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from speechssm.errors import EngineError

from .protocol import Array

DeviceName = Literal["cuda-python", "pycuda"]


class Device(Protocol):
    """One GPU and one stream on it. Calls on the stream run in order; ``synchronize`` waits for all of them."""

    @property
    def name(self) -> str:
        """The GPU's name."""

    @property
    def architecture(self) -> str:
        """Compute capability, such as ``sm_90``."""

    @property
    def captures(self) -> bool:
        """Whether work can be captured and replayed."""

    @property
    def stream(self) -> int:
        """Address of the stream."""

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """A zeroed array that both sides see; host and device must not write it at the same time."""

    def allocate(self, size_bytes: int) -> int:
        """Address of device memory, aligned to 256 bytes. Raises EngineError when there is not enough."""

    def free(self, address: int) -> None:
        """Give back what ``allocate`` gave."""

    def synchronize(self) -> None:
        """Wait for everything on the stream. Raises EngineError when any of it failed."""

    def begin_capture(self) -> None:
        """Record what is put on the stream from now on instead of running it."""

    def end_capture(self) -> Any:
        """The recorded work, ready to launch. Raises EngineError when something in it cannot be captured."""

    def launch(self, captured: Any) -> None:
        """Run recorded work once, on the stream."""

    def release(self, captured: Any) -> None:
        """Free recorded work."""


def open_device(name: DeviceName = "cuda-python") -> Device:
    """The first GPU. Raises EngineError when its package, driver or the GPU itself is missing."""
    if name == "pycuda":
        from .device_pycuda import PyCudaDevice

        return PyCudaDevice()
    from .device_cuda import CudaDevice

    return CudaDevice()


def device_architecture() -> str | None:
    """Compute capability of the first GPU, None where there is none or no way to reach it."""
    try:
        return open_device().architecture
    except EngineError:
        return None

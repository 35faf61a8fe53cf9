"""A GPU through cuda-python (the CUDA runtime API)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from speechssm.errors import EngineError

from .protocol import Array


class CudaDevice:
    """The current CUDA device and one stream on it. See :class:`speechssm.engines.device.Device`."""

    captures = True

    def __init__(self) -> None:
        """Raises EngineError when cuda-python, the driver or the GPU is missing."""
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise EngineError(
                "running engines needs cuda-python: run 'pip install speechssm[gpu]'"
            ) from error
        self._api = runtime
        count = self._do("look for a GPU", runtime.cudaGetDeviceCount())
        if count < 1:
            raise EngineError("CUDA finds no GPU: check 'nvidia-smi'")
        attribute = runtime.cudaDeviceAttr
        major, minor = (
            self._do("ask for the GPU's capability", runtime.cudaDeviceGetAttribute(which, 0))
            for which in (
                attribute.cudaDevAttrComputeCapabilityMajor,
                attribute.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.architecture = f"sm_{major}{minor}"
        properties = self._do("ask for the GPU's properties", runtime.cudaGetDeviceProperties(0))
        self.name = bytes(properties.name).split(b"\0")[0].decode(errors="replace")
        self._stream = self._do(
            "make a stream", runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)
        )
        self.stream = int(self._stream)

    def _do(self, what: str, answer: tuple[Any, ...]) -> Any:
        """The value of a call's answer. Raises EngineError with CUDA's own words."""
        status, *values = answer
        if int(status) != 0:
            _, text = self._api.cudaGetErrorString(status)
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise EngineError(f"cannot {what}: CUDA error {int(status)}, {reason}; see 'speechssm doctor'")
        return values[0] if values else None

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """See :class:`Device`: managed memory, freed with the last array that lies in it."""
        kind = np.dtype(dtype)
        size = max(1, prod(shape) * kind.itemsize)
        address = int(
            self._do(
                f"allocate {size} bytes of managed memory",
                self._api.cudaMallocManaged(size, self._api.cudaMemAttachGlobal),
            )
        )
        buffer = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(buffer, self._api.cudaFree, address)
        array: Array = np.frombuffer(buffer, kind, count=prod(shape)).reshape(shape)
        array[...] = 0
        return array

    def allocate(self, size_bytes: int) -> int:
        """See :class:`Device`."""
        what = f"allocate {size_bytes} bytes on the GPU"
        return int(self._do(what, self._api.cudaMalloc(max(1, size_bytes))))

    def free(self, address: int) -> None:
        """See :class:`Device`."""
        self._do("free memory", self._api.cudaFree(address))

    def synchronize(self) -> None:
        """See :class:`Device`."""
        self._do("finish the work on the GPU", self._api.cudaStreamSynchronize(self._stream))

    def begin_capture(self) -> None:
        """See :class:`Device`. Other threads' work is not looked at."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("begin capturing", self._api.cudaStreamBeginCapture(self._stream, mode))

    def end_capture(self) -> Any:
        """See :class:`Device`."""
        graph = self._do("end capturing", self._api.cudaStreamEndCapture(self._stream))
        try:
            return self._do("make the captured graph ready", self._api.cudaGraphInstantiate(graph, 0))
        finally:
            self._api.cudaGraphDestroy(graph)

    def launch(self, captured: Any) -> None:
        """See :class:`Device`."""
        self._do("launch the captured graph", self._api.cudaGraphLaunch(captured, self._stream))

    def release(self, captured: Any) -> None:
        """See :class:`Device`."""
        self._do("free a captured graph", self._api.cudaGraphExecDestroy(captured))

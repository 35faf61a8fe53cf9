"""A GPU through PyCUDA, the second adapter. PyCUDA cannot capture graphs, so steps run eagerly on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from speechssm.errors import EngineError

from .protocol import Array


class PyCudaDevice:
    """PyCUDA's primary context of the first GPU. See :class:`speechssm.engines.device.Device`."""

    captures = False

    def __init__(self) -> None:
        """Raises EngineError when PyCUDA, the driver or the GPU is missing."""
        try:
            import pycuda.driver as driver
        except ImportError as error:
            raise EngineError(
                f"PyCUDA cannot be used ({error}): run 'pip install speechssm[pycuda]' where CUDA is installed, or use "
                "cuda-python"
            ) from error
        self._driver = driver
        try:
            driver.init()
            device = driver.Device(0)
            # TensorRT and ONNX Runtime use the primary context; another one would not see their memory.
            self._context = device.retain_primary_context()
            self._context.push()
            self._stream = driver.Stream()
        except driver.Error as error:
            raise EngineError(f"PyCUDA finds no usable GPU: {error}") from error
        major, minor = device.compute_capability()
        self.architecture = f"sm_{major}{minor}"
        self.name = str(device.name())
        self.stream = int(self._stream.handle)
        self._memory: dict[int, Any] = {}

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """See :class:`Device`: managed memory."""
        flags = self._driver.mem_attach_flags.GLOBAL
        try:
            array: Array = self._driver.managed_zeros(tuple(shape), dtype, mem_flags=flags)
        except self._driver.Error as error:
            raise EngineError(f"cannot allocate managed memory for {tuple(shape)}: {error}") from error
        return array

    def allocate(self, size_bytes: int) -> int:
        """See :class:`Device`."""
        try:
            memory = self._driver.mem_alloc(max(1, size_bytes))
        except self._driver.Error as error:
            raise EngineError(f"cannot allocate {size_bytes} bytes on the GPU: {error}") from error
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See :class:`Device`."""
        self._memory.pop(address).free()

    def synchronize(self) -> None:
        """See :class:`Device`."""
        try:
            self._stream.synchronize()
        except self._driver.Error as error:
            raise EngineError(f"the work on the GPU failed: {error}") from error

    def begin_capture(self) -> NoReturn:
        """Raises EngineError: PyCUDA has no graphs."""
        raise EngineError("PyCUDA cannot capture graphs: use cuda-python for them")

    def end_capture(self) -> NoReturn:
        """Never reached."""
        raise EngineError("PyCUDA cannot capture graphs: use cuda-python for them")

    def launch(self, captured: Any) -> NoReturn:
        """Never reached."""
        raise EngineError("PyCUDA cannot launch graphs: use cuda-python for them")

    def release(self, captured: Any) -> None:
        """Nothing was captured."""

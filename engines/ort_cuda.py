"""ONNX Runtime's CUDA provider with state that stays on the GPU and steps that are captured graphs.

ONNX Runtime captures by itself: runs that carry the same ``gpu_graph_id`` are captured once and replayed
from then on, ``-1`` runs eagerly. One id stands for each pair of state sets, and a pair's first step is
made both ways and compared before its graph is trusted (:mod:`.capture`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import GraphEntry
from speechssm.errors import EngineError

from .capture import first_step
from .checks import check_array, check_names
from .device import Device
from .ort import OrtGraph, OrtOptions, first_line
from .protocol import Array, Bindings
from .tensorrt_run import remember

EAGER = "-1"
"""The graph id of runs that are neither captured nor replayed."""
CAPTURE_RUNS = 3
"""Runs with a new id after which ONNX Runtime replays: up to two to warm up, one to capture."""


@dataclass
class CudaBindings:
    """An I/O binding on device addresses, and whether its graph is trusted."""

    binding: Any
    number: int
    outputs: dict[str, Array]
    copied_in: list[tuple[Array, Array]] = field(default_factory=list)
    copied_out: list[tuple[Array, Array]] = field(default_factory=list)
    keep: list[Array] = field(default_factory=list)
    captured: bool = False
    eager_because: str | None = None


class OrtCudaGraph(OrtGraph):
    """One graph on ONNX Runtime's CUDA provider. Graphs with control flow (Scan) are never captured."""

    def __init__(
        self,
        name: str,
        path: Path,
        entry: GraphEntry,
        device: Device,
        options: OrtOptions,
        *,
        capture: bool = True,
        recorded: bool = False,
    ) -> None:
        """As :class:`OrtGraph`. ``recorded``: ``path`` is an engine whose digest was checked by its record."""
        self._device = device
        self._recorded = recorded
        self._capture = capture and device.captures
        self._ours: dict[int, int] = {}
        self._numbers = 0
        self._lock = threading.Lock()
        super().__init__(name, path, entry, options)

    def _check_file(self, path: Path) -> None:
        if not self._recorded:
            super()._check_file(path)

    def _run_options(self) -> Any:
        return self._options(EAGER)

    def _options(self, number: str) -> Any:
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", number)
        return options

    def _provider(self, options: OrtOptions) -> Any:
        settings = {"user_compute_stream": str(self._device.stream)}
        if self._capture:
            settings["enable_cuda_graph"] = "1"
        return ("CUDAExecutionProvider", settings)

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """See :class:`Graph`: managed memory."""
        array = self._device.zeros(shape, dtype)
        remember(array, self._ours)
        return array

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """See :class:`Graph`. Buffers from :meth:`zeros` are used where they lie."""
        binding = self._live().io_binding()
        sizes: dict[str, int] = {}
        made = CudaBindings(binding, self._numbers, {})
        self._numbers += 1
        for values, given, attach, copied in (
            (self.entry.inputs, inputs, binding.bind_input, made.copied_in),
            (self.entry.outputs, outputs, binding.bind_output, made.copied_out),
        ):
            check_names(self.name, values, given)
            for value in values:
                array = given[value.name]
                check_array(self.name, value, array, sizes)
                here = array
                if self._ours.get(array.ctypes.data, -1) < array.nbytes:
                    here = self._device.zeros(array.shape, array.dtype)
                    copied.append((here, array))
                attach(value.name, "cuda", 0, array.dtype, list(array.shape), here.ctypes.data)
                made.keep.append(here)
                if given is outputs:
                    made.outputs[value.name] = here
        return made

    def run(self, bindings: Bindings) -> None:
        """See :class:`Graph`."""
        assert isinstance(bindings, CudaBindings)
        with self._lock:
            for here, given in bindings.copied_in:
                np.copyto(here, given)
            if bindings.captured:
                self._run_as(bindings, str(bindings.number))
            elif self._capture and bindings.eager_because is None:
                self._first_step(bindings)
            else:
                self._run_as(bindings, EAGER)
            for here, given in bindings.copied_out:
                np.copyto(given, here)

    def _first_step(self, bindings: CudaBindings) -> None:
        number = str(bindings.number)

        def capture() -> None:
            for _ in range(CAPTURE_RUNS):
                self._run_as(bindings, number)

        bindings.eager_because = first_step(
            f"graph {self.name}",
            lambda: self._run_as(bindings, EAGER),
            capture,
            lambda: self._run_as(bindings, number),
            bindings.outputs,
            {},
        )
        bindings.captured = bindings.eager_because is None

    def _run_as(self, bindings: CudaBindings, number: str) -> None:
        try:
            self._live().run_with_iobinding(bindings.binding, self._options(number))
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"graph {self.name} failed: {first_line(error)}") from error
        self._device.synchronize()

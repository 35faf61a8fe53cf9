"""TensorRT and TensorRT-RTX engines behind the ``Graph`` protocol.

Buffers from :meth:`TensorRTGraph.zeros` are managed memory and are bound where they lie, so state never
leaves the GPU; any other array is copied in and out around each run. Every bound pair of state sets has
an execution context and, after its first step, a captured graph of its own: one for each parity.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import GraphEntry
from speechssm.bundle.manifest import Value
from speechssm.errors import EngineError

from .capture import first_step
from .checks import check_array, check_names
from .device import Device
from .key import Flavour
from .protocol import Array, Bindings
from .vendor import MODULES


class TensorRTRuntime:
    """The vendor's runtime with our plugin registered, shared by all engines of a process."""

    def __init__(self, flavour: Flavour, plugin: Path | None, module: Any = None) -> None:
        """Raises EngineError when the package or the plugin cannot be loaded. ``module`` is for tests."""
        name, extra = MODULES[flavour]
        self.flavour = flavour
        self.api = _import(name, extra) if module is None else module
        self._said: list[str] = []
        self._logger = _logger(self.api, self._said)
        self._runtime = self.api.Runtime(self._logger)
        if plugin is not None:
            registry = self._runtime.get_plugin_registry()
            if registry.load_library(str(plugin)) is None:
                raise EngineError(
                    f"{flavour} cannot load the plugin {plugin}{self.said()}: build it again with "
                    "'speechssm ext build tensorrt'"
                )

    def said(self) -> str:
        """What the vendor has logged since the last time, as the end of a sentence."""
        text = "; ".join(self._said[-3:])
        self._said.clear()
        return f" ({text})" if text else ""

    def engine(self, path: Path) -> Any:
        """Deserialise an engine whose digest was checked. Raises EngineError with the vendor's words."""
        try:
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise EngineError(f"the engine {path} cannot be read: {error.strerror or error}") from error
        if engine is None:
            raise EngineError(
                f"{self.flavour} does not take the engine {path}{self.said()}: check 'speechssm doctor' and "
                f"'speechssm explain {path.parent.parent}'"
            )
        return engine


@dataclass
class TensorRTBindings:
    """One execution context with its buffers, and what was captured of it."""

    context: Any
    outputs: dict[str, Array]
    """What a step writes, where the engine writes it."""
    in_place: dict[str, Array]
    """The outputs that are also inputs."""
    copied_in: list[tuple[Array, Array]] = field(default_factory=list)
    """The engine's buffer and the caller's."""
    copied_out: list[tuple[Array, Array]] = field(default_factory=list)
    keep: list[Array] = field(default_factory=list)
    captured: Any = None
    eager_because: str | None = None
    """Why steps run without a captured graph; None before the first step, or when they do not."""


class TensorRTGraph:
    """One engine. See :class:`speechssm.engines.protocol.Graph`.

    Runs are serialised: contexts share their scratch memory, and the device has one stream.
    """

    def __init__(
        self,
        name: str,
        entry: GraphEntry,
        runtime: TensorRTRuntime,
        engine: Any,
        device: Device,
        *,
        capture: bool = True,
    ) -> None:
        """Raises EngineError when the engine's inputs and outputs are not those of ``entry``."""
        self.name = name
        self.entry = entry
        self.provider = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[runtime.flavour]
        self._runtime, self._engine, self._device = runtime, engine, device
        self._capture = capture and device.captures
        self._lock = threading.Lock()
        self._ours: dict[int, int] = {}
        self._check_signature()
        self.aliased = self._find_aliased()
        self._ranges = {v.name: engine.get_tensor_profile_shape(v.name, 0) for v in entry.inputs if v.axes}
        self._scratch_bytes = int(_of(engine, "device_memory_size_v2", "device_memory_size"))
        self._scratch = device.allocate(self._scratch_bytes) if self._scratch_bytes else 0
        self._calling: Any = None
        self._buffers: dict[str, Array] = {}
        self._bound: list[TensorRTBindings] = []

    def _check_signature(self) -> None:
        api, engine = self._runtime.api, self._engine
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        wanted = {v.name: v for v in (*self.entry.inputs, *self.entry.outputs)}
        if found != wanted.keys():
            odd = sorted(found ^ wanted.keys())[0]
            raise EngineError(
                f"the engine of graph {self.name} and the manifest disagree about {odd}: build the engines again"
            )
        inputs = {v.name for v in self.entry.inputs}
        for name, value in wanted.items():
            is_input = engine.get_tensor_mode(name) == api.TensorIOMode.INPUT
            dtype = np.dtype(api.nptype(engine.get_tensor_dtype(name))).name
            rank = len(tuple(engine.get_tensor_shape(name)))
            if is_input != (name in inputs) or dtype != value.dtype or rank != len(value.axes):
                raise EngineError(
                    f"the engine of graph {self.name} has {name} as {'input' if is_input else 'output'} {dtype} of "
                    f"rank {rank}, the manifest as {value.dtype} of rank {len(value.axes)}: build the engines again"
                )

    def _find_aliased(self) -> frozenset[str]:
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        pairs = {} if ask is None else {v.name: ask(v.name) for v in self.entry.outputs}
        states = {s.name for s in self.entry.state}
        for output, given in pairs.items():
            state = output.removeprefix("out_")
            if given and (state not in states or given != f"in_{state}"):
                raise EngineError(
                    f"the engine of graph {self.name} writes {output} over {given}, which is not its state: "
                    "build it again"
                )
        return frozenset(output.removeprefix("out_") for output, given in pairs.items() if given)

    # buffers

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """See :class:`Graph`."""
        array = self._device.zeros(shape, dtype)
        remember(array, self._ours)
        return array

    def _is_ours(self, array: Array) -> bool:
        """Whether the engine can use ``array`` where it lies: all or the front of one from :meth:`zeros`."""
        return self._ours.get(array.ctypes.data, -1) >= array.nbytes

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """See :class:`Graph`. Raises EngineError also for sizes outside the engine's profile."""
        self._live()
        sizes: dict[str, int] = {}
        for values, given in ((self.entry.inputs, inputs), (self.entry.outputs, outputs)):
            check_names(self.name, values, given)
            for value in values:
                check_array(self.name, value, given[value.name], sizes)
        for name in self.aliased:
            if inputs[f"in_{name}"].ctypes.data != outputs[f"out_{name}"].ctypes.data:
                raise EngineError(
                    f"graph {self.name} updates {name} in place: bind in_{name} and out_{name} to one buffer"
                )
        made = TensorRTBindings(self._context(), {}, {})
        placed: dict[int, Array] = {}
        for value in self.entry.inputs:
            array = inputs[value.name]
            self._check_profile(value, array)
            here = self._place(array, placed)
            if here is not array:
                made.copied_in.append((here, array))
            self._set_input(made.context, value, here)
            made.keep.append(here)
        for value in self.entry.outputs:
            array = outputs[value.name]
            here = self._place(array, placed)
            if here is not array:
                made.copied_out.append((here, array))
            self._set_address(made.context, value.name, here)
            made.outputs[value.name] = here
            made.keep.append(here)
        made.in_place = {f"out_{n}": made.outputs[f"out_{n}"] for n in self.aliased}
        missing = made.context.infer_shapes()
        if missing:
            raise EngineError(f"graph {self.name} cannot run: {', '.join(missing)} is not set")
        self._bound.append(made)
        return made

    def _place(self, array: Array, placed: dict[int, Array]) -> Array:
        """``array`` itself, or a buffer of ours that stands for it (one for all that lie at its address)."""
        if self._is_ours(array):
            return array
        at = array.ctypes.data
        if at not in placed:
            placed[at] = self._device.zeros(array.shape, array.dtype)
        return placed[at]

    def _check_profile(self, value: Value, array: Array) -> None:
        if not value.axes:
            return
        low, _, high = self._ranges[value.name]
        for axis, size, least, most in zip(value.axes, array.shape, low, high, strict=True):
            if not least <= size <= most:
                raise EngineError(
                    f"graph {self.name}: {value.name} has {size} along {axis}, and the engine was built for {least} to "
                    f"{most}: build it with a wider profile (speechssm build, --rows, --batch, --tokens, --frames)"
                )

    def _set_input(self, context: Any, value: Value, array: Array) -> None:
        if not context.set_input_shape(value.name, tuple(array.shape)):
            raise EngineError(
                f"graph {self.name}: the engine does not take {value.name} of shape {array.shape}{self._runtime.said()}"
            )
        self._set_address(context, value.name, array)

    def _set_address(self, context: Any, name: str, array: Array) -> None:
        if not context.set_tensor_address(name, array.ctypes.data):
            raise EngineError(
                f"graph {self.name}: the engine does not take a buffer for {name}{self._runtime.said()}"
            )

    def _context(self) -> Any:
        strategy = self._runtime.api.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(
                f"graph {self.name}: the engine gave no execution context{self._runtime.said()}: is the GPU's "
                "memory full?"
            )
        if self._scratch_bytes:
            context.set_device_memory(self._scratch, self._scratch_bytes)
        return context

    # running

    def run(self, bindings: Bindings) -> None:
        """See :class:`Graph`. Returns when the outputs are written."""
        assert isinstance(bindings, TensorRTBindings)
        with self._lock:
            self._live()
            for here, given in bindings.copied_in:
                np.copyto(here, given)
            if bindings.captured is not None:
                self._device.launch(bindings.captured)
                self._device.synchronize()
            elif self._may_capture(bindings):
                self._first_step(bindings)
            else:
                self._enqueue(bindings.context)
                self._device.synchronize()
            for here, given in bindings.copied_out:
                np.copyto(given, here)

    def _may_capture(self, bindings: TensorRTBindings) -> bool:
        if not self._capture or bindings.eager_because is not None:
            return False
        # TensorRT-RTX compiles kernels while it runs, and says when it is done with that.
        ready = getattr(bindings.context, "is_stream_capturable", None)
        return ready is None or bool(ready(self._device.stream))

    def _first_step(self, bindings: TensorRTBindings) -> None:
        device = self._device

        def eager() -> None:
            self._enqueue(bindings.context)
            device.synchronize()

        def capture() -> None:
            device.begin_capture()
            try:
                self._enqueue(bindings.context)
            except EngineError:
                _end_quietly(device)
                raise
            bindings.captured = device.end_capture()

        def replay() -> None:
            device.launch(bindings.captured)
            device.synchronize()

        problem = first_step(
            f"graph {self.name}", eager, capture, replay, bindings.outputs, bindings.in_place
        )
        bindings.eager_because = problem
        if problem is not None and bindings.captured is not None:
            device.release(bindings.captured)
            bindings.captured = None

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise EngineError(f"graph {self.name} failed{self._runtime.said()}")

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See :class:`Graph`. Never captured: shapes change from call to call."""
        check_names(self.name, self.entry.inputs, inputs)
        sizes: dict[str, int] = {}
        with self._lock:
            self._live()
            if self._calling is None:
                self._calling = self._context()
            context = self._calling
            for value in self.entry.inputs:
                given = np.ascontiguousarray(inputs[value.name]).reshape(inputs[value.name].shape)
                check_array(self.name, value, given, sizes)
                self._check_profile(value, given)
                here = self._buffer(value, given.shape)
                np.copyto(here, given)
                self._set_input(context, value, here)
            missing = context.infer_shapes()
            if missing:
                raise EngineError(f"graph {self.name} cannot run: {', '.join(missing)} is not set")
            results: dict[str, Array] = {}
            for value in self.entry.outputs:
                shape = tuple(context.get_tensor_shape(value.name))
                state = value.name.removeprefix("out_")
                if state in self.aliased:  # it lies in its input's buffer
                    here = self._buffers[f"in_{state}"][: int(np.prod(shape))].reshape(shape)
                else:
                    here = self._buffer(value, shape)
                check_array(self.name, value, here, sizes)
                self._set_address(context, value.name, here)
                results[value.name] = here
            self._enqueue(context)
            self._device.synchronize()
            return [results[name].copy() for name in outputs]

    def _buffer(self, value: Value, shape: Sequence[int]) -> Array:
        """A buffer of ours for ``value`` that is large enough, cut to ``shape``; it grows and is kept."""
        count = int(np.prod(shape, dtype=np.int64))
        known = self._buffers.get(value.name)
        if known is None or known.size < count:
            known = self._buffers[value.name] = self._device.zeros((count,), value.dtype)
        return known.reshape(-1)[:count].reshape(shape)

    def close(self) -> None:
        """See :class:`Graph`."""
        with self._lock:
            if self._engine is None:
                return
            for bindings in self._bound:
                if bindings.captured is not None:
                    self._device.release(bindings.captured)
                    bindings.captured = None
                bindings.context = None
            self._bound.clear()
            self._buffers.clear()
            self._calling = self._engine = None
            if self._scratch:
                self._device.free(self._scratch)
                self._scratch = 0

    def _live(self) -> None:
        if self._engine is None:
            raise EngineError(f"graph {self.name} was closed: load the model again")


def remember(array: Array, known: dict[int, int]) -> None:
    """Keep ``array``'s address and bytes in ``known`` for as long as its memory lives."""
    known[array.ctypes.data] = array.nbytes
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    weakref.finalize(root, known.pop, array.ctypes.data, None)


def _end_quietly(device: Device) -> None:
    """Leave capture mode after something in it failed; the first error is the one to tell of."""
    with suppress(EngineError):
        device.release(device.end_capture())


def _of(thing: Any, *names: str) -> Any:
    """The first attribute that ``thing`` has: names changed between versions."""
    for name in names:
        if hasattr(thing, name):
            return getattr(thing, name)
    return 0


def _import(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            f"running these engines needs {name} in this Python ({error}): run 'pip install speechssm[{extra}]'"
        ) from error


def _logger(api: Any, said: list[str]) -> Any:
    class Messages(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= api.ILogger.Severity.ERROR:
                said.append(text.strip())

    return Messages()

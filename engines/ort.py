"""ONNX Runtime, on CPU or CUDA, behind the ``Graph`` protocol.

Which provider runs is judged by what the session really got: ONNX Runtime falls back to the CPU with
no more than a log line when CUDA's libraries are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from speechssm.bundle import GraphEntry
from speechssm.bundle.onnx_check import check_graph
from speechssm.errors import EngineError, SettingsError

from .checks import check_array, check_names
from .protocol import Array, Bindings

Provider = Literal["cpu", "cuda"]
PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
THREADS_MAX = 1024
"""Most threads of one engine call; ONNX Runtime would start any number."""


@dataclass(frozen=True)
class OrtOptions:
    """How a session is made. ``threads`` 0 lets ONNX Runtime use every core."""

    provider: Provider = "cpu"
    threads: int = 0
    custom_ops: Path | None = None
    """Library of cpp_ext; it is named by the caller, never by a bundle."""
    widen_once: bool = True
    """Narrow weights as float32 in memory from the start. Else they are widened at every use: half the memory, which is
    pages of the file, and two to three times the time of a step; a product may then round otherwise for other rows."""

    def __post_init__(self) -> None:
        """Raise SettingsError for a number of threads that no machine has."""
        if not 0 <= self.threads <= THREADS_MAX:
            raise SettingsError(f"threads is {self.threads}: give 1 to {THREADS_MAX}, or 0 for every core")


def import_onnxruntime() -> ModuleType:
    """The onnxruntime module, or EngineError naming both extras."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "no ONNX Runtime is installed: run 'pip install speechssm[cpu]', or 'pip install speechssm[gpu]' for CUDA"
        ) from error
    module: ModuleType = onnxruntime
    return module


class OrtGraph:
    """One graph in an ONNX Runtime session.

    The file is checked (:mod:`speechssm.bundle.onnx_check`) right here, so there is no way to point ONNX
    Runtime at one that was not. Raises BundleError when the check refuses it, EngineError when ONNX
    Runtime does.
    """

    def __init__(self, name: str, path: Path, entry: GraphEntry, options: OrtOptions | None = None) -> None:
        options = options or OrtOptions()
        self.name = name
        self.entry = entry
        self._ort = import_onnxruntime()
        self._check_file(path)
        self._session: Any = self._open(path, options)
        self._check_signature()
        granted = self._session.get_providers()
        wanted = PROVIDERS[options.provider]
        if wanted not in granted:
            self.close()
            raise EngineError(
                f"{wanted} was asked for but the session got {', '.join(granted)}: install speechssm[gpu] without "
                "onnxruntime beside it, with CUDA 13 and cuDNN 9, and check 'speechssm doctor'"
            )
        self.provider: str = wanted

    def _open(self, path: Path, options: OrtOptions) -> Any:
        ort = self._ort
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # A spinning pool would take the second core from whoever shares the machine.
        settings.add_session_config_entry(
            "session.intra_op.allow_spinning", "0" if options.threads == 1 else "1"
        )
        # A step, a window and a codec call take turns on the same cores: threads that spin on after a run would be
        # in the way of the next session's.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if options.custom_ops is not None:
            settings.register_custom_ops_library(str(options.custom_ops))
        providers = [self._provider(options)]
        if options.provider != "cpu":
            providers.append(PROVIDERS["cpu"])
        # Folding a constant's Cast is what holds it in float32.
        more = {} if options.widen_once else {"disabled_optimizers": ["ConstantFolding"]}
        try:
            return ort.InferenceSession(str(path), settings, providers=providers, **more)
        except Exception as error:  # ONNX Runtime raises its own family of exceptions, all from Exception
            raise EngineError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error

    def _check_file(self, path: Path) -> None:
        check_graph(path, self.entry)

    def _provider(self, options: OrtOptions) -> Any:
        """What ONNX Runtime is told of the provider: its name, or its name and settings."""
        return PROVIDERS[options.provider]

    def _run_options(self) -> Any:
        """Options of a call, None for ONNX Runtime's own."""
        return None

    def _check_signature(self) -> None:
        for kind, declared, found in (
            ("input", self.entry.inputs, self._session.get_inputs()),
            ("output", self.entry.outputs, self._session.get_outputs()),
        ):
            wanted = {v.name: v for v in declared}
            actual = {v.name: v for v in found}
            if wanted.keys() != actual.keys():
                odd = sorted(wanted.keys() ^ actual.keys())
                raise EngineError(
                    f"graph {self.name}: the file and the manifest disagree about {kind} {odd[0]}"
                )
            for name, value in actual.items():
                if _ORT_TYPES.get(value.type) != wanted[name].dtype or len(value.shape) != len(
                    wanted[name].axes
                ):
                    raise EngineError(
                        f"graph {self.name}: {kind} {name} is {value.type} of rank {len(value.shape)} in the file, "
                        f"{wanted[name].dtype} of rank {len(wanted[name].axes)} in the manifest"
                    )

    @property
    def aliased(self) -> frozenset[str]:
        """See :class:`Graph`: on the CPU, what the graph is done with before it writes it.

        ONNX Runtime scatters into an input that is bound to its output without copying it.
        """
        return frozenset(s.name for s in self.entry.state if s.in_place and self.provider == PROVIDERS["cpu"])

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """See :class:`Graph`: plain memory, which ONNX Runtime shares with numpy."""
        return np.zeros(shape, dtype)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """See :class:`Graph`. On CUDA the host buffers are copied in and out by ONNX Runtime."""
        binding = self._live().io_binding()
        keep: list[Any] = []
        sizes: dict[str, int] = {}
        for values, given, attach in (
            (self.entry.inputs, inputs, binding.bind_ortvalue_input),
            (self.entry.outputs, outputs, binding.bind_ortvalue_output),
        ):
            check_names(self.name, values, given)
            for value in values:
                array = given[value.name]
                check_array(self.name, value, array, sizes)
                tied = self._ort.OrtValue.ortvalue_from_numpy(array)
                keep.append(tied)
                attach(value.name, tied)
        return OrtBindings(binding, keep)

    def run(self, bindings: Bindings) -> None:
        """See :class:`Graph`."""
        assert isinstance(bindings, OrtBindings)
        try:
            self._live().run_with_iobinding(bindings.binding)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"graph {self.name} failed: {first_line(error)}") from error

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See :class:`Graph`."""
        check_names(self.name, self.entry.inputs, inputs)
        sizes: dict[str, int] = {}
        feeds = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in inputs.items()}
        for value in self.entry.inputs:
            check_array(self.name, value, feeds[value.name], sizes)
        try:
            results: list[Array] = self._live().run(list(outputs), feeds, self._run_options())
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"graph {self.name} failed: {first_line(error)}") from error
        declared = {v.name: v for v in self.entry.outputs}
        for name, array in zip(outputs, results, strict=True):
            # A graph may compute another shape than it declares; nobody behind here looks again.
            check_array(self.name, declared[name], array, sizes)
        return results

    def close(self) -> None:
        """See :class:`Graph`."""
        self._session = None

    def _live(self) -> Any:
        if self._session is None:
            raise EngineError(f"graph {self.name} was closed: load the model again")
        return self._session


@dataclass
class OrtBindings:
    """An ONNX Runtime I/O binding and the values it points at."""

    binding: Any
    keep: list[Any]


_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def provider_names() -> list[str]:
    """Providers this ONNX Runtime was built with; a session may still not get them."""
    return list(import_onnxruntime().get_available_providers())


__all__ = [
    "PROVIDERS",
    "OrtBindings",
    "OrtGraph",
    "OrtOptions",
    "Provider",
    "import_onnxruntime",
    "provider_names",
]

"""The graphs of one bundle, opened when they are first needed and shared by every session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechssm.bundle import Bundle
from speechssm.errors import EngineError

from .builder import Environment, find_engine
from .device import Device, open_device
from .index import command, read_index
from .ort import OrtGraph, OrtOptions, import_onnxruntime
from .ort_cuda import OrtCudaGraph
from .protocol import Graph
from .tensorrt_run import TensorRTGraph, TensorRTRuntime

CAPTURED = "lm_step"
"""The graph whose steps are captured: it alone runs with the same shapes over and over."""


class BundleGraphs:
    """Opens a bundle's graphs on ONNX Runtime, or on the engines it is given. Thread-safe.

    Opening lazily matters for the prefill graph: at ``2b`` it is a second copy of the weights in
    memory, needed only while prompts are read. The two cannot share one: each session repacks its weights for
    its kernels, and the container through which sessions share such copies is not in the Python API of ONNX
    Runtime (1.32). Without repacking a product of one row takes another path, so S1 would no longer hold.
    """

    def __init__(
        self, bundle: Bundle, options: OrtOptions | None = None, engines: EngineGraphs | None = None
    ) -> None:
        self.bundle = bundle
        self.options = options or OrtOptions()
        self._engines = engines
        self._graphs: dict[str, Graph] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Graph:
        """The graph called ``name`` in the manifest. Raises BundleError or EngineError."""
        with self._lock:
            if name not in self._graphs:
                self._graphs[name] = self._open(name)
            return self._graphs[name]

    def _open(self, name: str) -> Graph:
        if self._engines is not None and name in self._engines.names:
            return self._engines.open(name)
        path, entry = self.bundle.graph(name)
        return OrtGraph(name, path, entry, replace(self.options))

    def release(self, name: str) -> None:
        """Give back the memory of one graph; it opens again when it is next asked for."""
        with self._lock:
            graph = self._graphs.pop(name, None)
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Release every graph."""
        for name in list(self._graphs):
            self.release(name)


class EngineGraphs:
    """The engines that ``speechssm build`` made of a bundle, checked one by one as they are opened.

    Version, GPU and digests are compared before anything is deserialised. Graphs that were not built run
    on ONNX Runtime's CPU provider.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        plugin: Path | None,
        *,
        device: Device | None = None,
        module: Any = None,
        make_device: Callable[[], Device] = open_device,
    ) -> None:
        """``plugin`` is the library with our operators. Raises EngineError when nothing here can run them.

        ``device`` and ``module`` (the vendor's) are for tests.
        """
        self.bundle, self.folder = bundle, folder
        self.index = read_index(folder)
        self.names = frozenset(self.index.graphs)
        self._flavour = self.index.settings.engine
        self._plugin = plugin if self.index.settings.plugin else None
        self._runtime: TensorRTRuntime | None = None
        if self._flavour == "onnxruntime-cuda":
            version = str(import_onnxruntime().__version__)
        else:
            # Registered before an engine is seen: an engine that needs it fails without a word otherwise.
            self._runtime = TensorRTRuntime(self._flavour, self._plugin, module)
            version = str(self._runtime.api.__version__)
        self._device = device or make_device()
        self.here = Environment(version, self._plugin, self._device.architecture)

    def open(self, name: str) -> Graph:
        """The engine of graph ``name``. Raises EngineError with the reason and the command when it may not be used."""
        _, entry = self.bundle.graph(name)
        verdict = find_engine(self.bundle, name, self.index, self.folder, self.here)
        if verdict.engine is None:
            again = command(self.index.settings, str(self.bundle.folder), self.folder)
            raise EngineError(f"the engine of graph {name} is not used: {verdict}; run '{again}'")
        capture = name == CAPTURED
        if self._runtime is None:
            options = OrtOptions(provider="cuda", custom_ops=self._plugin)
            return OrtCudaGraph(
                name, verdict.engine, entry, self._device, options, capture=capture, recorded=True
            )
        engine = self._runtime.engine(verdict.engine)
        return TensorRTGraph(name, entry, self._runtime, engine, self._device, capture=capture)

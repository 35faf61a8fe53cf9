"""The graphs of one bundle, opened when they are first needed and shared by every session."""

from __future__ import annotations

import threading
from dataclasses import replace

from speechssm.bundle import Bundle

from .ort import OrtGraph, OrtOptions
from .protocol import Graph


class BundleGraphs:
    """Opens a bundle's graphs on ONNX Runtime. Thread-safe.

    Opening lazily matters for the prefill graph: at ``2b`` it is a second copy of the weights in
    memory, needed only while prompts are read. The two cannot share one: each session repacks its weights for
    its kernels, and the container through which sessions share such copies is not in the Python API of ONNX
    Runtime (1.32). Without repacking a product of one row takes another path, so S1 would no longer hold.
    """

    def __init__(self, bundle: Bundle, options: OrtOptions | None = None) -> None:
        self.bundle = bundle
        self.options = options or OrtOptions()
        self._graphs: dict[str, Graph] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Graph:
        """The graph called ``name`` in the manifest. Raises BundleError or EngineError."""
        with self._lock:
            if name not in self._graphs:
                path, entry = self.bundle.graph(name)
                self._graphs[name] = OrtGraph(name, path, entry, replace(self.options))
            return self._graphs[name]

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

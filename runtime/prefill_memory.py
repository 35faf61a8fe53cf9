"""Engines that are opened late and given back: what lets a large model run where two copies of it do not fit.

The prefill graph keeps weights of its own in memory. It is needed while prompts are read and never else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from speechssm.engines.protocol import Array, Bindings, Graph


class Reading:
    """Counts the prompts being read; ``release`` runs when the last of them is done. Thread-safe."""

    def __init__(self, release: Callable[[], None] | None = None) -> None:
        self._release = release
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Keep the prefill graph open inside the block."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if self._count == 0 and self._release is not None:
                    self._release()


class LateGraph:
    """A graph of ONNX Runtime that is opened at its first use, so that the prefill graph can be gone by then."""

    def __init__(self, name: str, open_graph: Callable[[], Graph]) -> None:
        self._name = name
        self._open = open_graph

    @property
    def name(self) -> str:
        """See :class:`Graph`."""
        return self._name

    @property
    def provider(self) -> str:
        """See :class:`Graph`."""
        return self._open().provider

    @property
    def aliased(self) -> frozenset[str]:
        """See :class:`Graph`: nothing, on the engines that open late."""
        return frozenset()

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """See :class:`Graph`: plain memory, for which nothing has to be open."""
        return np.zeros(shape, dtype)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """See :class:`Graph`."""
        return self._open().bind(inputs, outputs)

    def run(self, bindings: Bindings) -> None:
        """See :class:`Graph`."""
        self._open().run(bindings)

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See :class:`Graph`."""
        return self._open().call(inputs, outputs)

    def close(self) -> None:
        """See :class:`Graph`."""

"""What the runtime asks of an engine: run a graph on buffers it was bound to.

The runtime allocates state once and steps millions of times, so binding names to buffers is apart
from running: ``bind`` once for each pair of state buffers, then ``run`` with no further look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@runtime_checkable
class Bindings(Protocol):
    """Inputs and outputs tied to buffers. The buffers stay alive as long as this does."""


@runtime_checkable
class Graph(Protocol):
    """One runnable graph.

    A graph may be shared by threads; a Bindings object may not be run twice at the same time.
    """

    @property
    def name(self) -> str:
        """The graph's name in the manifest."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs it, such as ``CPUExecutionProvider``."""

    @property
    def aliased(self) -> frozenset[str]:
        """State tensors whose output must be bound to the very buffer of their input: updated in place."""

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """A zeroed array where this engine reads and writes fastest, which the host may read and write too.

        Any array can be bound; one from here is used where it lies and never copied.
        """

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """Tie every input and output to a C-contiguous buffer that the caller fills and reads.

        Raises EngineError when a name is missing or unknown, or a dtype or shape does not fit.
        """

    def run(self, bindings: Bindings) -> None:
        """Read the bound inputs, write the bound outputs. Raises EngineError when the engine fails."""

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run once on fresh buffers, for graphs whose shapes change; returns the named outputs."""

    def close(self) -> None:
        """Release the engine's memory. Running a closed graph raises EngineError."""


def as_dtype(name: str) -> np.dtype[Any]:
    """numpy dtype of a manifest type name."""
    return np.dtype(name)

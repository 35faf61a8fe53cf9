"""The recurrent state of b rows: plain arrays, two sets of them.

A step reads one set and writes the other (ping-pong), because few engines promise that an output may
alias an input; a tensor for which one does is the same array in both sets. Between steps the *current*
set is the truth; rows are zeroed, saved and loaded there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssm.bundle import StateTensor, state_bytes
from speechssm.errors import SnapshotError

Array = npt.NDArray[Any]
RowState = dict[str, Array]
"""One row's tensors by state name, without the row axis."""


class StateBuffers:
    """State of ``rows`` (b) rows for the tensors of ``schema``.

    ``zeros`` makes the arrays where the engine wants them; ``aliased`` names those it updates in place.
    """

    def __init__(
        self,
        schema: Sequence[StateTensor],
        rows: int,
        zeros: Callable[[Sequence[int], str], Array] = np.zeros,
        aliased: Collection[str] = (),
    ) -> None:
        self.schema = tuple(schema)
        self.rows = rows
        first = {s.name: zeros((rows, *s.shape), s.dtype) for s in self.schema}
        second = {
            s.name: first[s.name] if s.name in aliased else zeros((rows, *s.shape), s.dtype)
            for s in self.schema
        }
        self.sets = first, second
        self.parity = 0

    @property
    def current(self) -> dict[str, Array]:
        """The set the next step reads: name to (b, ...)."""
        return self.sets[self.parity]

    def inputs(self, parity: int) -> dict[str, Array]:
        """Graph inputs when the step reads set ``parity``."""
        return {f"in_{name}": array for name, array in self.sets[parity].items()}

    def outputs(self, parity: int) -> dict[str, Array]:
        """Graph outputs when the step reads set ``parity``: the other set."""
        return {f"out_{name}": array for name, array in self.sets[1 - parity].items()}

    def flip(self) -> None:
        """The set just written becomes the current one."""
        self.parity = 1 - self.parity

    def clear(self, row: int) -> None:
        """Zero one row in both sets, so that nothing of its last stream is left (S4)."""
        for tensors in self.sets:
            for array in tensors.values():
                array[row] = 0

    def save(self, row: int) -> RowState:
        """A copy of one row."""
        return {name: array[row].copy() for name, array in self.current.items()}

    def load(self, row: int, saved: Mapping[str, Array]) -> None:
        """Put a saved row back. Raises SnapshotError when names, shapes or types differ from the schema."""
        check_row(self.schema, saved)
        for name, array in self.current.items():
            array[row] = saved[name]

    @property
    def row_bytes(self) -> int:
        """Bytes of state of one session."""
        return state_bytes(self.schema)


def check_row(schema: Sequence[StateTensor], saved: Mapping[str, Array]) -> None:
    """Raise SnapshotError unless ``saved`` holds exactly the tensors of ``schema``."""
    names = {s.name for s in schema}
    if names != saved.keys():
        raise SnapshotError(
            f"state tensor {sorted(names ^ saved.keys())[0]} is missing or unknown: the snapshot is of another model"
        )
    for s in schema:
        array = saved[s.name]
        if array.shape != s.shape or array.dtype != np.dtype(s.dtype):
            raise SnapshotError(
                f"state tensor {s.name} is {array.dtype} {array.shape}, this model has {s.dtype} {s.shape}: "
                "the snapshot is of another model"
            )

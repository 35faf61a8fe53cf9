"""The recurrent state of b rows: plain arrays, two sets of them.

The cache of a Transformer grows: its tensors have a slot for each token, a block of slots at a time, as
many as the longest row needs.

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
        self._zeros = zeros
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

    def hold(self, tokens: int) -> bool:
        """Make room for ``tokens`` a row where tensors grow; True when the arrays are new ones."""
        growing = {s.name: _slots(s, tokens) for s in self.schema if s.grows}
        if all(self.sets[0][name].shape[1] >= slots for name, slots in growing.items()):
            return False
        for name, slots in growing.items():
            before = [tensors[name] for tensors in self.sets]
            first = self._wider(before[0], slots)
            self.sets[0][name] = first
            self.sets[1][name] = first if before[1] is before[0] else self._wider(before[1], slots)
        return bool(growing)

    def _wider(self, array: Array, slots: int) -> Array:
        wider = self._zeros((len(array), slots, *array.shape[2:]), array.dtype.name)
        wider[:, : array.shape[1]] = array
        return wider

    def clear(self, row: int) -> None:
        """Zero one row in both sets, so that nothing of its last stream is left (S4)."""
        for tensors in self.sets:
            for array in tensors.values():
                array[row] = 0

    def save(self, row: int) -> RowState:
        """A copy of one row; of a tensor that grows, the blocks its tokens reach into."""
        held = {s.name: _slots(s, int(self.current["position"][row])) for s in self.schema if s.grows}
        return {
            name: (array[row, : held[name]] if name in held else array[row]).copy()
            for name, array in self.current.items()
        }

    def load(self, row: int, saved: Mapping[str, Array]) -> None:
        """Put a saved row back. Raises SnapshotError when names, shapes or types differ from the schema."""
        check_row(self.schema, saved)
        self.hold(max((len(saved[s.name]) for s in self.schema if s.grows), default=0))
        for name, array in self.current.items():
            if saved[name].shape != array[row].shape:
                array[row] = 0
                array[row][: len(saved[name])] = saved[name]
            else:
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
    position = int(saved["position"]) if "position" in saved and saved["position"].shape == () else 0
    for s in schema:
        array = saved[s.name]
        wanted = s.shape
        if s.grows and array.ndim == len(s.shape) and (slots := _slots(s, position)):
            wanted = (slots, *s.shape[1:])
        if array.shape != wanted or array.dtype != np.dtype(s.dtype):
            raise SnapshotError(
                f"state tensor {s.name} is {array.dtype} {array.shape}, this model has {s.dtype} {wanted}: "
                "the snapshot is of another model"
            )


def fitted(schema: Sequence[StateTensor], state: Mapping[str, Array], tokens: int) -> RowState:
    """One row's ``state`` with room for ``tokens`` where tensors grow."""
    held = {s.name: _slots(s, tokens) for s in schema if s.grows}
    return {name: _with_slots(array, held[name]) if name in held else array for name, array in state.items()}


def _slots(tensor: StateTensor, tokens: int) -> int:
    """Slots of the whole blocks that hold ``tokens``: at least one block."""
    block = tensor.shape[0]
    return block * max(1, -(-tokens // block))


def _with_slots(array: Array, slots: int) -> Array:
    more = slots - len(array)
    if more <= 0:
        return array
    return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])

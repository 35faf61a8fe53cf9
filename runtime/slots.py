"""Which rows of a state pool are free, in use, or quarantined. Pure bookkeeping, no tensors."""

from __future__ import annotations

from enum import Enum

from speechssm.errors import CapacityError


class Slot(Enum):
    """What a row is doing."""

    FREE = "free"
    USED = "used"
    QUARANTINED = "quarantined"
    """Its state failed the watchdog; it is not stepped and must be released."""


class SlotTable:
    """Slots 0..rows-1. The lowest free slot is given first, so that runs repeat."""

    def __init__(self, rows: int) -> None:
        self._slots = [Slot.FREE] * rows

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, row: int) -> Slot:
        return self._slots[row]

    def admit(self) -> int:
        """Take a free slot. Raises CapacityError when there is none."""
        for row, slot in enumerate(self._slots):
            if slot is Slot.FREE:
                self._slots[row] = Slot.USED
                return row
        raise CapacityError(
            f"all {len(self)} slots are in use: release a session or open the model with more rows"
        )

    def quarantine(self, row: int) -> None:
        """Stop using a row whose state failed."""
        self._expect(row, Slot.USED)
        self._slots[row] = Slot.QUARANTINED

    def release(self, row: int) -> None:
        """Give a slot back. The caller clears its state."""
        if self._slots[row] is Slot.FREE:
            raise ValueError(f"slot {row} is already free")
        self._slots[row] = Slot.FREE

    def used(self) -> list[int]:
        """Rows in use, lowest first."""
        return [row for row, slot in enumerate(self._slots) if slot is Slot.USED]

    def _expect(self, row: int, wanted: Slot) -> None:
        if self._slots[row] is not wanted:
            raise ValueError(f"slot {row} is {self._slots[row].value}, not {wanted.value}")

"""How many sessions fit a machine, how many of them run in real time, and which limit binds.

A step of b rows reads every weight once and every row's state once, writes the state once, and does
b times the arithmetic of one token. It cannot be faster than the slower of the two; what is measured
stands beside this ceiling in every report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechssm.axes import TOKEN_RATE_HZ
from speechssm.bundle.shapes import LMShape

STEP_BUDGET_S = 1 / TOKEN_RATE_HZ
"""Longest step that keeps up with speech: 40 ms."""


@dataclass(frozen=True)
class Machine:
    """What bounds a step. Rates are measured ones (``speechssm bench roofline``), not a data sheet's."""

    memory_bytes: int
    read_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class StepFloor:
    """Shortest possible time of one step, by what it is spent on."""

    bytes_s: float
    flops_s: float

    @property
    def total_s(self) -> float:
        """Memory traffic and arithmetic overlap, so the slower one counts."""
        return max(self.bytes_s, self.flops_s)


@dataclass(frozen=True)
class Capacity:
    """Sessions that fit the memory, sessions that also run in real time, and what stops one more."""

    fit: int
    real_time: int
    limit: Literal["memory", "bandwidth", "compute"]


def step_seconds(
    shape: LMShape,
    machine: Machine,
    rows: int,
    position: int,
    *,
    weight_item_bytes: float,
    ring_item_bytes: int,
) -> StepFloor:
    """The floor of one step of ``rows`` (b) sessions, each at ``position``.

    A ring is read where it is filled and written whole by engines that copy their state; the floor
    counts the read and one new entry, which is all the arithmetic needs.
    """
    weights = shape.matrix_parameters * weight_item_bytes
    keys = position if shape.cache == "grow" else min(position, shape.window)
    state = 2 * shape.recurrent_bytes + (keys + 1) * shape.kv_bytes_per_token(ring_item_bytes)
    return StepFloor(
        (weights + rows * state) / machine.read_bytes_per_s,
        rows * shape.step_flops(position) / machine.flops_per_s,
    )


def capacity(
    shape: LMShape, machine: Machine, *, weight_item_bytes: float, ring_item_bytes: int, tokens: int
) -> Capacity:
    """Sessions of ``tokens`` each that ``machine`` holds, and runs at 25 tokens a second."""
    left = machine.memory_bytes - shape.parameters * weight_item_bytes
    fit = max(0, int(left // shape.session_bytes(tokens, ring_item_bytes)))

    def floor(rows: int) -> StepFloor:
        return step_seconds(
            shape, machine, rows, tokens, weight_item_bytes=weight_item_bytes, ring_item_bytes=ring_item_bytes
        )

    low, high = 0, fit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if floor(middle).total_s <= STEP_BUDGET_S else (low, middle - 1)
    if low == fit:
        return Capacity(fit, low, "memory")
    next_one = floor(low + 1)
    return Capacity(fit, low, "bandwidth" if next_one.bytes_s >= next_one.flops_s else "compute")

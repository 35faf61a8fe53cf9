"""A captured graph is trusted only after one step of it equalled one run eagerly (S7).

Capturing in-place state is a known trap: some runtimes execute while they capture, so the state moves on
(onnxruntime #32243), or replay something that is silently wrong (onnxruntime-genai #2452). So: keep what
the step overwrites, run eagerly, put it back, capture, put it back again, replay, and compare every bit.
An output that eager runs give differently from each other, as sums in no fixed order do, has no bits to compare:
it is compared as numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from speechssm.errors import EngineError

from .protocol import Array

LOG = logging.getLogger("speechssm.engines")
EAGER_RUNS = 3
"""More eager runs that show whether an output is the same each time."""
UNSTEADY = 1e-4
"""Relative and absolute difference allowed where it is not."""


def first_step(
    what: str,
    eager: Callable[[], None],
    capture: Callable[[], None],
    replay: Callable[[], None],
    outputs: Mapping[str, Array],
    in_place: Mapping[str, Array],
) -> str | None:
    """One step, made both ways; returns None when the replay may serve from now on, else why not.

    ``eager`` and ``replay`` run the step once and wait; ``capture`` records it. ``outputs`` are the
    arrays the step writes, ``in_place`` those of them that it also reads. Whatever happens, the arrays
    hold the eager step's results in the end. Raises EngineError when the eager step itself fails.
    """
    before = {name: array.copy() for name, array in in_place.items()}
    eager()
    expected = {name: array.copy() for name, array in outputs.items()}
    problem: str | None = None
    try:
        _put(in_place, before)
        capture()
        # What capturing may have run has moved the state on; what was written must be written again.
        _spoil(outputs, expected)
        _put(in_place, before)
        replay()
        replayed = {name: array.copy() for name, array in outputs.items()}
        wrong = [name for name in outputs if replayed[name].tobytes() != expected[name].tobytes()]
        close = {n for n in wrong if _close(replayed[n], expected[n])}
        unsteady: set[str] = set()
        for _ in range(EAGER_RUNS if wrong and close == set(wrong) else 0):
            _put(in_place, before)
            eager()
            unsteady |= {name for name in wrong if outputs[name].tobytes() != expected[name].tobytes()}
        wrong = [name for name in wrong if name not in unsteady]
        if unsteady and not wrong:
            _put(outputs, expected)
        if wrong:
            problem = f"its replay differs from the eager step in {', '.join(wrong[:3])}"
    except EngineError as error:
        problem = str(error)
    if problem is not None:
        _put(outputs, expected)
        LOG.warning("%s runs without a captured graph: %s", what, problem)
    return problem


def _close(found: Array, expected: Array) -> bool:
    """Whether numbers differ by no more than sums in another order do. Integers have to be equal."""
    return found.dtype.kind == "f" and np.allclose(found, expected, UNSTEADY, UNSTEADY, equal_nan=True)


def _put(arrays: Mapping[str, Array], values: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        np.copyto(array, values[name])


def _spoil(arrays: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Make every byte of every output wrong, so that only a replay that writes it can be right."""
    for name, array in arrays.items():
        raw = array.reshape(-1).view(np.uint8)
        np.copyto(raw, ~expected[name].reshape(-1).view(np.uint8))

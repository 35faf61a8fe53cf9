"""What makes a good unit: how much it says about the phone, and how little about the speaker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pnmi(units: NDArray[np.integer], phones: NDArray[np.integer]) -> float:
    """Phone-normalised mutual information (HuBERT, section 4.3): I(unit; phone) / H(phone), over frames.

    Callers leave silence out.
    """
    joint = np.zeros((int(units.max()) + 1, int(phones.max()) + 1))
    np.add.at(joint, (units, phones), 1.0)
    joint /= joint.sum()
    by_unit, by_phone = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    some = joint > 0
    information = float((joint[some] * np.log(joint[some] / (by_unit * by_phone)[some])).sum())
    heard = by_phone[by_phone > 0]
    return information / float(-(heard * np.log(heard)).sum())


def runs_removed(units: Sequence[int] | NDArray[np.integer]) -> list[int]:
    """The sequence with repeats of the same unit written once."""
    array = np.asarray(units)
    if len(array) == 0:
        return []
    return [int(u) for u in array[np.concatenate([[True], array[1:] != array[:-1]])]]


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein distance."""
    right = np.asarray(b)
    row = np.arange(len(b) + 1)
    for i, unit in enumerate(a):
        best = np.minimum(row[:-1] + (right != unit), row[1:] + 1)
        # Insertions run along the row: a running minimum of (value - position) finds them all at once.
        moved = np.concatenate([[i + 1], best]) - np.arange(len(b) + 1)
        row = np.minimum.accumulate(moved) + np.arange(len(b) + 1)
    return int(row[-1])


def spread(versions: Sequence[Sequence[int] | NDArray[np.integer]]) -> float:
    """Mean over pairs of one text's ``versions`` of edit distance / longer length, repeats removed."""
    plain = [runs_removed(v) for v in versions]
    pairs = [(a, b) for i, a in enumerate(plain) for b in plain[i + 1 :]]
    return float(np.mean([edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs]))

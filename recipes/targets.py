"""Stage ``targets``: 500 units, each a phone in a class of neighbourhoods, chosen by the teacher's ear.

Plain k-means on Whisper's block 4 spends units on voices and on the drift inside a phone: at 500 units
it explains phones well (PNMI 0.70) but the same text in another voice differs in 52 % of its units.
So units are made as speech recognisers tie their triphones: the alignment says where a phone is, and a
decision tree over its left and right neighbours splits it wherever the teacher's features differ most.
A unit is then a matter of what is said, never of who says it, and one phone keeps one unit for as long
as it lasts. It plays the part of USM-v2's ASR loss (paper section 3.1).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ

from . import data, figures, places, splits, teach
from .teachers import align

CORPORA = ("kathleen", "librispeech", "stories_speech", "synthetic")
UNKNOWN = -1
CLASSES = {
    "silence": "sil",
    "vowel": "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW",
    "front": "AE EH EY IH IY Y",
    "high": "IH IY UH UW Y W",
    "low": "AA AE AO AW AY",
    "round": "AO OW OY UH UW W",
    "central": "AH ER UH",
    "rhotic": "ER R",
    "liquid": "L R",
    "glide": "W Y L R ER",
    "nasal": "M N NG",
    "labial": "B P M F V W",
    "coronal": "T D N S Z TH DH L",
    "palatal": "CH JH SH ZH Y",
    "velar": "K G NG",
    "stop": "B D G P T K",
    "fricative": "F V TH DH S Z SH ZH HH",
    "sibilant": "S Z SH ZH CH JH",
    "voiceless": "P T K F TH S SH CH HH sil",
    "diphthong": "AW AY EY OW OY",
}
"""Questions about a neighbour; every single phone is one more."""

Cell = tuple[int, int, int]
"""A triphone: left, phone, right."""


@dataclass(frozen=True)
class Units:
    """``table[left, phone, right]`` is the unit of a triphone; ``phone_of[unit]`` its phone."""

    table: NDArray[np.int64]
    phone_of: NDArray[np.int64]

    def at(self, intervals: list[align.Interval], seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """The unit at each moment (t), UNKNOWN outside the recording."""
        ends = np.array([end for _, end in intervals])
        ids = np.array([phone for phone, _ in intervals])
        left = np.concatenate([[align.SILENCE], ids[:-1]])
        right = np.concatenate([ids[1:], [align.SILENCE]])
        units = self.table[left, ids, right]
        index = np.searchsorted(ends, seconds, side="right")
        found: NDArray[np.int64] = units[np.minimum(index, len(ids) - 1)]
        found[index >= len(ids)] = self.table[align.SILENCE, align.SILENCE, align.SILENCE]
        return found


def path() -> Path:
    """Where the units are kept."""
    return places.cache("targets") / "units.safetensors"


def load() -> Units:
    """The units made by :func:`run`."""
    arrays = places.load_arrays(path())
    return Units(arrays["table"], arrays["phone_of"])


def training_segments(root: Path) -> list[data.Segment]:
    """Every segment that may be trained on and has teacher features."""
    chosen = splits.training([r for r in data.recordings(root) if r.corpus in CORPORA])
    splits.refuse_held_out(chosen)
    found = [s for r in chosen for s in data.segments(r)]
    return [s for s in found if teach.features_path(s).exists()]


def plain(intervals: list[align.Interval]) -> list[align.Interval]:
    """Neighbouring silences joined."""
    joined: list[align.Interval] = []
    for phone, end in intervals:
        if joined and phone == joined[-1][0] == align.SILENCE:
            joined.pop()
        joined.append((phone, end))
    return joined


@dataclass
class _Sums:
    """Count, sum and squared norm of teacher frames: enough for the scatter around their mean."""

    count: float
    total: NDArray[np.float64]
    square: float

    @property
    def scatter(self) -> float:
        return self.square - float(self.total @ self.total) / max(self.count, 1.0)


def triphone_sums(segments: list[data.Segment]) -> dict[Cell, _Sums]:
    """Teacher frames of the middle of every aligned phone, summed by triphone."""
    sums: dict[Cell, _Sums] = {}
    for segment in segments:
        intervals = plain(align.load(segment.recording.key) or [])
        if not intervals:
            continue
        features = teach.features(segment).astype(np.float64)
        start = segment.start / SAMPLE_RATE_HZ
        ends = np.array([end for _, end in intervals]) - start
        ids = [align.SILENCE, *(phone for phone, _ in intervals), align.SILENCE]
        middles = (np.arange(len(features)) + 0.5) / TOKEN_RATE_HZ
        at = np.searchsorted(ends, middles, side="right")
        for i in np.unique(at[at < len(intervals)]):
            frames = features[at == i]
            cell = (ids[i], ids[i + 1], ids[i + 2])
            found = sums.setdefault(cell, _Sums(0.0, np.zeros(features.shape[1]), 0.0))
            found.count += len(frames)
            found.total += frames.sum(0)
            found.square += float(np.square(frames).sum())
    return sums


def _merge(parts: list[_Sums]) -> _Sums:
    total = np.sum([p.total for p in parts], axis=0)
    return _Sums(sum(p.count for p in parts), total, sum(p.square for p in parts))


def grow(sums: dict[Cell, _Sums], units: int, least: int) -> Units:
    """Split the leaf whose best question takes away most scatter, until there are ``units`` leaves.

    Every leaf keeps at least ``least`` frames. Silence is one leaf. Raises ValueError when the data
    cannot fill ``units`` leaves.
    """
    size = len(align.PHONES)
    questions = [{align.ID[p] for p in names.split()} for names in CLASSES.values()] + [
        {i} for i in range(size)
    ]
    leaves: list[list[Cell]] = []
    queue: list[tuple[float, int, int, set[int]]] = []

    def best(cells: list[Cell]) -> tuple[float, int, set[int]]:
        chosen: tuple[float, int, set[int]] = (0.0, 0, set())
        whole = _merge([sums[c] for c in cells]).scatter
        for side in (0, 2):
            by_neighbour: dict[int, list[_Sums]] = {}
            for cell in cells:
                by_neighbour.setdefault(cell[side], []).append(sums[cell])
            merged = {n: _merge(parts) for n, parts in by_neighbour.items()}
            for question in questions:
                yes = [s for n, s in merged.items() if n in question]
                no = [s for n, s in merged.items() if n not in question]
                if not yes or not no:
                    continue
                a, b = _merge(yes), _merge(no)
                gain = whole - a.scatter - b.scatter
                if min(a.count, b.count) >= least and gain > chosen[0]:
                    chosen = (gain, side, question)
        return chosen

    def add(cells: list[Cell]) -> None:
        leaves.append(cells)
        if cells[0][1] != align.SILENCE and cells[0] in sums:  # a phone nobody said stays one leaf
            gain, side, question = best(cells)
            if question:
                heapq.heappush(queue, (-gain, len(leaves) - 1, side, question))

    rules: list[tuple[int, int, set[int], int]] = []
    for phone in range(size):
        add([c for c in sums if c[1] == phone] or [(align.SILENCE, phone, align.SILENCE)])
    while len(leaves) < units and queue:
        _, leaf, side, question = heapq.heappop(queue)
        cells = leaves[leaf]
        rules.append((leaf, side, question, len(leaves)))
        leaves[leaf] = [c for c in cells if c[side] in question]
        add([c for c in cells if c[side] not in question])
        gain, again, ask = best(leaves[leaf])
        if ask:
            heapq.heappush(queue, (-gain, leaf, again, ask))
    if len(leaves) < units:
        raise ValueError(f"{len(leaves)} units can be told apart, {units} are asked for: align more speech")
    # The same rules, in order, place every triphone, heard or not.
    table = np.broadcast_to(np.arange(size)[None, :, None], (size, size, size)).astype(np.int64).copy()
    neighbours = np.arange(size)
    for leaf, side, question, other in rules:
        outside = ~np.isin(neighbours, list(question))
        mask = outside[:, None, None] if side == 0 else outside[None, None, :]
        table[(table == leaf) & mask] = other
    phone_of = np.array([cells[0][1] for cells in leaves])
    return Units(table, phone_of)


def run(root: Path, config: dict[str, Any]) -> Units:
    """Grow the tree over all aligned training speech."""
    log = places.Log(places.cache("targets") / "log.jsonl")
    sums = triphone_sums(training_segments(root))
    frames = sum(s.count for s in sums.values())
    units = grow(sums, config["shape"]["vocab"], config["targets"]["least_frames"])
    places.write_arrays(path(), {"table": units.table, "phone_of": units.phone_of})
    per_phone = np.bincount(units.phone_of, minlength=len(align.PHONES))
    names = dict(zip(align.PHONES, per_phone.tolist(), strict=True))
    log(stage="units", frames=int(frames), triphones=len(sums), units=len(units.phone_of), per_phone=names)
    figures.bars(path().with_name("units.png"), "Units of each phone", "units", names)
    return units

"""Token streams of the language model's training: one reader throughout, four minutes at most.

Stories come as stretches of about four minutes already. Short recordings of one speaker (kathleen's
sentences) are joined in random order; a single short one (LibriSpeech) is a short stream, and what is
missing to the segment length is not counted in the loss. Nothing held out is ever drawn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import places, splits
from ..tokens import folder

IGNORED = -100


@dataclass(frozen=True)
class Stream:
    """Tokens (t) of one recording or stretch."""

    name: str
    corpus: str
    speaker: str
    held_out: bool
    tokens: NDArray[np.int64]

    @property
    def stem(self) -> str:
        """File stem, as the held-out rule reads it."""
        return self.name.split("--", 1)[-1]


def load() -> list[Stream]:
    """Every stream made by the stage ``tokens``."""
    index = folder() / "index.jsonl"
    if not index.exists():
        raise FileNotFoundError(f"{index} is missing: run `python -m recipes tokens` first")
    rows = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    return [
        Stream(
            r["name"],
            r["corpus"],
            r["speaker"],
            r["held_out"],
            places.load_arrays(folder() / f"{r['name']}.safetensors")["tokens"].astype(np.int64),
        )
        for r in rows
    ]


def training(streams: list[Stream]) -> list[Stream]:
    """The streams that may be trained on, asked of the one rule again rather than of the index."""
    chosen = [s for s in streams if not splits.held_out(s)]
    splits.refuse_held_out(chosen)
    return chosen


class Source:
    """Draws batches; a batch is a function of (seed, step)."""

    def __init__(self, streams: list[Stream], settings: dict[str, Any]) -> None:
        self.settings = settings
        chosen = training(streams)
        self.stories = [s for s in chosen if s.corpus == "stories_text"]
        self.real = [s for s in chosen if s.corpus != "stories_text"]
        if not self.real:
            raise ValueError("no recording has been tokenised: run `python -m recipes tokens` first")
        lengths = np.array([len(s.tokens) for s in self.real], np.float64)
        self.real_share = lengths / lengths.sum()
        self.by_speaker: dict[str, list[int]] = {}
        for i, stream in enumerate(self.real):
            self.by_speaker.setdefault(f"{stream.corpus}/{stream.speaker}", []).append(i)

    def batch(self, step: int) -> Tensor:
        """Tokens (b, segment) int64, IGNORED past the end of a row."""
        s = self.settings
        rng = np.random.default_rng((s["seed"], step))
        finishing = step >= s["steps"] * (1 - s["finish_share"])
        share = s["finish_real_share"] if finishing else s["real_share"]
        rows = [
            self._real(rng) if rng.random() < share or not self.stories else self._story(rng)
            for _ in range(s["batch_segments"])
        ]
        longest = max(len(r) for r in rows)
        out = np.full((len(rows), longest), IGNORED, np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out)

    def _story(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return self._crop(self.stories[int(rng.integers(len(self.stories)))].tokens, rng)

    def _real(self, rng: np.random.Generator) -> NDArray[np.int64]:
        first = int(rng.choice(len(self.real), p=self.real_share))
        stream = self.real[first]
        parts = [stream.tokens]
        others = self.by_speaker[f"{stream.corpus}/{stream.speaker}"]
        while sum(map(len, parts)) < self.settings["segment_tokens"] and len(parts) < min(len(others), 80):
            parts.append(self.real[int(rng.choice(others))].tokens)
        return self._crop(np.concatenate(parts), rng)

    def _crop(self, tokens: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        most = self.settings["segment_tokens"]
        start = int(rng.integers(0, max(1, len(tokens) - most + 1)))
        return tokens[start : start + most]

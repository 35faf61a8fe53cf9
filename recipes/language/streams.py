"""Token streams of the language model's training: one reader throughout, four minutes at most.

Stories come as stretches of about four minutes already. Short recordings of one speaker (kathleen's
sentences) are joined in random order; a single short one (LibriSpeech) is a short stream. What is missing
to the length of the batch is not counted in the loss. Nothing held out is ever drawn.
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


def watched(streams: list[Stream], settings: dict[str, Any]) -> dict[str, list[Stream]]:
    """Stories and recordings that training leaves out to see when it learns the others by heart; none is held out."""
    share = settings.get("watched_share", 0.0)
    if not share:
        return {}
    chosen = training(streams)
    stories = [s for s in chosen if s.corpus == "stories_text"]
    real = [s for s in chosen if s.corpus != "stories_text"]
    return {"stories": stories[:: round(1 / share)], "real": real[:: round(1 / share)]}


def training(streams: list[Stream]) -> list[Stream]:
    """The streams that may be trained on, asked of the one rule again rather than of the index."""
    chosen = [s for s in streams if not splits.held_out(s)]
    splits.refuse_held_out(chosen)
    return chosen


class _Pool:
    """Streams to draw from, each as often as it is long."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams
        lengths = np.array([len(s.tokens) for s in streams], np.float64)
        self.tokens = float(lengths.sum())
        self._chances = lengths / max(1.0, self.tokens)

    def draw(self, rng: np.random.Generator) -> Stream:
        return self.streams[int(rng.choice(len(self.streams), p=self._chances))]


class Source:
    """Draws batches; a batch is a function of (seed, step).

    Every batch has one of two shapes, so that compiled code fits: ``batch_segments`` rows of
    ``segment_tokens`` from stories, or about as many tokens in rows of ``short_tokens`` from recordings
    that are shorter than that.
    """

    def __init__(self, streams: list[Stream], settings: dict[str, Any]) -> None:
        self.settings = settings
        left_out = {s.name for some in watched(streams, settings).values() for s in some}
        chosen = [s for s in training(streams) if s.name not in left_out]
        stories = [s for s in chosen if s.corpus == "stories_text"]
        real = [s for s in chosen if s.corpus != "stories_text"]
        if not real or not stories:
            missing = "story" if real else "recording"
            raise ValueError(f"no {missing} has been tokenised: run `python -m recipes tokens` first")
        short = [s for s in real if len(s.tokens) <= settings["short_tokens"]]
        self.stories, self.short = _Pool(stories), _Pool(short)
        self.long = _Pool([s for s in real if len(s.tokens) > settings["short_tokens"]])
        self.short_share = self.short.tokens / (self.short.tokens + self.long.tokens)
        self.by_speaker: dict[str, list[Stream]] = {}
        for stream in short:
            self.by_speaker.setdefault(f"{stream.corpus}/{stream.speaker}", []).append(stream)

    def batch(self, step: int) -> Tensor:
        """Tokens (b, segment) or (b, short) int64, IGNORED past the end of a row."""
        s = self.settings
        rng = np.random.default_rng((s["seed"], step))
        finishing = step >= s["steps"] * (1 - s["finish_share"])
        real = s["finish_real_share"] if finishing else s["real_share"]
        short = real * self.short_share
        if rng.random() < short:
            rows = s["batch_segments"] * max(1, s["segment_tokens"] // s["short_tokens"])
            return stack([self._short(rng) for _ in range(rows)], s["short_tokens"])
        long_share = (real - short) / (1 - short)
        rows = [
            self._long(self.long if rng.random() < long_share and self.long.streams else self.stories, rng)
            for _ in range(s["batch_segments"])
        ]
        return stack(rows, s["segment_tokens"])

    def _long(self, pool: _Pool, rng: np.random.Generator) -> NDArray[np.int64]:
        tokens = pool.draw(rng).tokens
        most = self.settings["segment_tokens"]
        start = int(rng.integers(0, max(1, len(tokens) - most + 1)))
        return tokens[start : start + most]

    def _short(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Whole recordings of one speaker, from the first one's first token on."""
        stream = self.short.draw(rng)
        others = self.by_speaker[f"{stream.corpus}/{stream.speaker}"]
        most, parts = self.settings["short_tokens"], [stream.tokens]
        while sum(map(len, parts)) < most and len(parts) < min(len(others), most):
            parts.append(others[int(rng.integers(len(others)))].tokens)
        return np.concatenate(parts)[:most]


def stack(rows: list[NDArray[np.int64]], length: int) -> Tensor:
    """Rows of tokens as (b,t) int64 of ``length``, IGNORED past the end of a row."""
    out = np.full((len(rows), length), IGNORED, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)

"""Training batches of the tokenizer: altered crops of speech with unit labels and teacher coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_SAMPLES

from . import data, places, targets, teach, views
from .teachers import align

COORDINATES = 64


@dataclass(frozen=True)
class Batch:
    """``audio (b,n)`` float32; ``units (b,t)`` int64, -1 unknown; ``teacher (b,t,64)``, NaN unknown."""

    audio: Tensor
    units: Tensor
    teacher: Tensor

    def to(self, device: str) -> Batch:
        """The batch on another device."""
        return Batch(self.audio.to(device), self.units.to(device), self.teacher.to(device))


def coordinates(segments: list[data.Segment], seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (512) and whitening projection (512,64) of the teacher's principal components, made once."""
    path = places.cache("targets") / "components.safetensors"
    if not path.exists():
        order = np.random.default_rng(seed).permutation(len(segments))[:600]
        frames = np.concatenate([teach.features(segments[i]).astype(np.float64) for i in order])
        mean = frames.mean(0)
        values, vectors = np.linalg.eigh(np.cov((frames - mean).T))
        top = np.argsort(values)[::-1][:COORDINATES]
        projection = vectors[:, top] / np.sqrt(values[top])
        places.write_arrays(
            path, {"mean": mean.astype(np.float32), "projection": projection.astype(np.float32)}
        )
    arrays = places.load_arrays(path)
    return arrays["mean"], arrays["projection"]


class Source:
    """Draws batches. Every batch is a function of (seed, step), so a resumed run continues the same stream."""

    def __init__(self, root: Path, config: dict[str, Any], altered: views.Views) -> None:
        self.settings = config["train"]
        self.views = altered
        self.units = targets.load()
        self.segments = targets.training_segments(root)
        self.intervals = [targets.plain(align.load(s.recording.key) or []) for s in self.segments]
        self.mean, self.projection = coordinates(self.segments, self.settings["seed"])
        share = np.array(
            [s.seconds * self.settings["corpora"].get(s.recording.corpus, 0.0) for s in self.segments]
        )
        self.share = share / share.sum()
        self._teacher: dict[int, NDArray[np.float16]] = {}

    def teacher(self, index: int) -> NDArray[np.float16]:
        """Coordinates (t,64) of a segment, projected once."""
        found = self._teacher.get(index)
        if found is None:
            full = teach.features(self.segments[index]).astype(np.float32)
            found = ((full - self.mean) @ self.projection).astype(np.float16)
            self._teacher[index] = found
        return found

    def batch(self, step: int) -> Batch:
        """The batch of ``step``."""
        rng = np.random.default_rng((self.settings["seed"], step))
        seconds = float(rng.choice(self.settings["crop_seconds"]))
        rows = max(1, int(self.settings["batch_seconds"] / seconds))
        tokens = int(seconds * SAMPLE_RATE_HZ) // TOKEN_SAMPLES
        made = [self._row(int(i), tokens, rng) for i in rng.choice(len(self.share), rows, p=self.share)]
        audio, units, teacher = (np.stack(part) for part in zip(*made, strict=True))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        heard = views.degraded(torch.from_numpy(audio), self.views, generator)
        return Batch(heard, torch.from_numpy(units), torch.from_numpy(teacher))

    def _row(
        self, index: int, tokens: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """One crop; a segment shorter than the crop is followed by others of the same speaker's recordings."""
        audio, units, teacher = [], [], []
        speed = float(np.exp(rng.uniform(-1, 1) * np.log(self.views.speed)))
        left = tokens
        while left > 0:
            segment = self.segments[index]
            whole = data.segment_audio(segment)
            new = int(len(whole) / speed) // TOKEN_SAMPLES
            take = max(1, min(left, new))
            start = float(rng.uniform(0, max(0.0, len(whole) - take * TOKEN_SAMPLES * speed)))
            audio.append(views.speeded(whole, take * TOKEN_SAMPLES, start, speed))
            middles = start + speed * (np.arange(take) + 0.5) * TOKEN_SAMPLES
            intervals = self.intervals[index]
            moments = (segment.start + middles) / SAMPLE_RATE_HZ
            units.append(
                self.units.at(intervals, moments) if intervals else np.full(take, targets.UNKNOWN, np.int64)
            )
            known = self.teacher(index)
            teacher.append(known[np.minimum(middles.astype(np.int64) // TOKEN_SAMPLES, len(known) - 1)])
            left -= take
            index = self._another(index, rng)
        return np.concatenate(audio), np.concatenate(units), np.concatenate(teacher).astype(np.float32)

    def _another(self, index: int, rng: np.random.Generator) -> int:
        """A segment near ``index`` in the list: lists are ordered by speaker where speakers repeat."""
        near = index + int(rng.integers(1, 4))
        if (
            near < len(self.segments)
            and self.segments[near].recording.speaker == self.segments[index].recording.speaker
        ):
            return near
        return index

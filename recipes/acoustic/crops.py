"""Training examples: a prompt and a window of one speaker, and which codes of the window are hidden.

A speaker's recordings are laid end to end, as the runtime lays a stream's start behind its end, so windows
cross cuts now and then. Prompt and window never overlap. Everything follows from (seed, step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssm.axes import TOKEN_FRAMES
from speechssm.bundle.shapes import AcousticShape

from .prepare import Encoded


@dataclass(frozen=True)
class Mixture:
    """How examples are drawn.

    ``shares`` of the corpora; ``original`` the share of recordings at their own speed; ``tokens`` the
    window lengths, one per step; ``windows`` how many share a prompt, which costs as much to encode as one
    of them; ``adjacent`` the share of prompts directly in front of their first window.
    ``coarsest`` is the share of rows that learn level 0, as it takes most passes; the others learn the i-th finer
    level in proportion to 1/i, since what is heard depends on them in about that order; ``sent`` the share with
    leading frames known at every level, as in a ramp; ``whole`` the share of finer-level rows with every
    frame hidden, as their one pass meets them.
    """

    shares: Mapping[str, float] = field(
        default_factory=lambda: {"kathleen": 0.12, "librispeech": 0.48, "stories_speech": 0.40}
    )
    original: float = 0.4
    tokens: tuple[int, ...] = (75, 150)
    windows: int = 3
    adjacent: float = 0.2
    coarsest: float = 0.5
    sent: float = 0.25
    whole: float = 0.5


@dataclass(frozen=True)
class Batch:
    """v prompts and b windows, b/v of each prompt after each other.

    Of the prompts ``prompt_tokens`` (v,75), ``prompt_codes`` (v,q,150) and the speaker's ``voice`` (v,256); of
    the windows ``tokens`` (b,t), ``codes`` and ``known`` (b,q,f), the ``level`` (b) to learn and its ``hidden``
    frames (b,f).
    """

    prompt_tokens: Tensor
    prompt_codes: Tensor
    tokens: Tensor
    codes: Tensor
    known: Tensor
    level: Tensor
    hidden: Tensor
    voice: Tensor


class Crops:
    """Every speaker's stream, on one device."""

    def __init__(
        self, encoded: Sequence[Encoded], shape: AcousticShape, mixture: Mixture, device: str
    ) -> None:
        self.shape, self.mixture, self.device = shape, mixture, device
        grouped: dict[tuple[str, str, float], list[Encoded]] = {}
        for item in encoded:
            grouped.setdefault(item.speaker, []).append(item)
        if not grouped:
            raise ValueError("nothing is prepared: run the prepare stage first")
        self.speakers = list(grouped)
        self._chances: dict[int, NDArray[np.float64]] = {}
        self.lengths = np.array([sum(len(i.tokens) for i in items) for items in grouped.values()])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        every = [i for items in grouped.values() for i in items]
        self.tokens = torch.from_numpy(np.concatenate([i.tokens for i in every])).to(device)
        self.codes = torch.from_numpy(np.concatenate([i.codes for i in every], axis=1)).to(device)
        voices = np.stack([np.mean([i.voice for i in items], axis=0) for items in grouped.values()])
        self.voices = torch.from_numpy(voices / np.linalg.norm(voices, axis=1, keepdims=True)).to(device)

    def __call__(self, seed: int, step: int, rows: int) -> Batch:
        """The examples of one step, ``rows`` windows: whole prompts' worth of them."""
        each = self.mixture.windows
        if rows % each:
            raise ValueError(f"{rows} rows are not a multiple of the {each} windows that share a prompt")
        rng = np.random.default_rng((seed, step))
        length = int(rng.choice(self.mixture.tokens))
        speakers = self.draw_speakers(rng, rows // each, length)
        prompts, first = self.place(rng, speakers, length)
        others = [self.beside(rng, speakers, prompts, length) for _ in range(each - 1)]
        windows = np.stack([first, *others], axis=1).reshape(-1)
        known, level, hidden = hide(rng, rows, self.shape.levels, length * TOKEN_FRAMES, self.mixture)
        prompt_tokens, prompt_codes = self._cut(prompts, self.shape.prompt_tokens)
        tokens, codes = self._cut(windows, length)
        return Batch(
            prompt_tokens,
            prompt_codes,
            tokens,
            codes,
            known=torch.from_numpy(known).to(self.device),
            level=torch.from_numpy(level).to(self.device),
            hidden=torch.from_numpy(hidden).to(self.device),
            voice=self.voices[torch.from_numpy(speakers).to(self.device)],
        )

    def draw_speakers(self, rng: np.random.Generator, rows: int, length: int) -> NDArray[np.int64]:
        """Speakers (b) long enough for a prompt and a window of ``length`` tokens."""
        if length not in self._chances:
            self._chances[length] = self._chances_at(length)
        return rng.choice(len(self.speakers), rows, p=self._chances[length])

    def _chances_at(self, length: int) -> NDArray[np.float64]:
        """Chance of each speaker: by corpus, then by speed, then alike."""
        corpora = np.array([corpus for corpus, _, _ in self.speakers])
        original = np.array([speed == 1.0 for _, _, speed in self.speakers])
        long = self.lengths >= self.shape.prompt_tokens + length
        chances: NDArray[np.float64] = np.zeros(len(self.speakers))
        for corpus, share in self.mixture.shares.items():
            for speed, part in ((original, self.mixture.original), (~original, 1 - self.mixture.original)):
                some = (corpora == corpus) & speed & long
                chances += share * part * some / max(1, some.sum())
        if not chances.any():
            raise ValueError(f"no prepared speaker has {self.shape.prompt_tokens + length} tokens")
        chances /= chances.sum()
        return chances

    def place(
        self, rng: np.random.Generator, speakers: NDArray[np.int64], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First tokens (b) of prompts and of windows, within the speakers' streams, never overlapping."""
        prompt = self.shape.prompt_tokens
        slack = self.lengths[speakers] - prompt - length
        first, second = np.sort(rng.integers(0, slack[:, None] + 1, (len(speakers), 2)), axis=1).T
        adjacent = rng.random(len(speakers)) < self.mixture.adjacent
        before = adjacent | (rng.random(len(speakers)) < 0.5)
        second = np.where(adjacent, first, second)
        at = self.starts[speakers]
        prompts = at + np.where(before, first, second + length)
        windows = at + np.where(before, second + prompt, first)
        return prompts, windows

    def beside(
        self,
        rng: np.random.Generator,
        speakers: NDArray[np.int64],
        prompts: NDArray[np.int64],
        length: int,
    ) -> NDArray[np.int64]:
        """First token (b) of one more window of each speaker that leaves the prompt alone."""
        offset, prompt = prompts - self.starts[speakers], self.shape.prompt_tokens
        before = np.maximum(0, offset - length + 1)
        after = np.maximum(0, self.lengths[speakers] - offset - prompt - length + 1)
        drawn = rng.integers(0, before + after)
        behind = prompts + prompt + drawn - before
        windows: NDArray[np.int64] = np.where(drawn < before, self.starts[speakers] + drawn, behind)
        return windows

    def _cut(self, starts: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
        """tokens (b,length) and codes (b,q,2 length) from ``starts`` on."""
        at = torch.from_numpy(starts[:, None] + np.arange(length)).to(self.device)
        frames = torch.from_numpy(starts[:, None] * TOKEN_FRAMES + np.arange(length * TOKEN_FRAMES)).to(
            self.device
        )
        return self.tokens[at], self.codes[:, frames].transpose(0, 1)


def finer_shares(levels: int) -> NDArray[np.float64]:
    """Shares (q - 1) of the finer levels in the rows that do not learn the coarsest."""
    each = 1 / np.arange(1.0, levels)
    shares: NDArray[np.float64] = each / each.sum()
    return shares


def hide(
    rng: np.random.Generator, rows: int, levels: int, frames: int, mixture: Mixture
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """``known`` (b,q,f), the ``level`` (b) to learn, and its ``hidden`` frames (b,f): SoundStorm's masking.

    The share of hidden frames is the cosine of a uniform angle; coarser levels are known, finer ones not.
    """
    level = np.zeros(rows, np.int64)
    if levels > 1:
        finer = rng.choice(np.arange(1, levels), rows, p=finer_shares(levels))
        level = np.where(rng.random(rows) < mixture.coarsest, 0, finer)
    sent = np.where(rng.random(rows) < mixture.sent, rng.integers(0, frames, rows), 0)
    ratio = np.cos(np.pi / 2 * rng.random(rows))
    ratio = np.where((level > 0) & (rng.random(rows) < mixture.whole), 1.0, ratio)
    old = np.arange(frames) < sent[:, None]
    hidden = (rng.random((rows, frames)) < ratio[:, None]) & ~old
    hidden[~hidden.any(1), -1] = True
    at = np.arange(levels)[None, :, None]
    here = level[:, None, None]
    known = (at < here) | ((at == here) & ~hidden[:, None]) | ((at > here) & old[:, None])
    return known, level, hidden

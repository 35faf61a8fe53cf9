"""Seeded random weights of a Griffin, one layer in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from speechssm.bundle.shapes import LMShape

from ..lazy import LazyArrays
from ..models.griffin import Griffin, ResidualBlock

_TOP = ("embed", "head")


def seeded_griffin(shape: LMShape, seed: int) -> LazyArrays:
    """Float32 parameters of :class:`speechssm.export.models.griffin.Griffin` by name, as its init draws them.

    Every layer has its own random numbers, so a tensor is the same whichever was asked for before it.
    """
    return LazyArrays(_Seeded(shape, seed).makers())


def seeded_embedding(vocab: int, width: int, seed: int, name: str = "embed") -> np.ndarray:
    """A fresh (v,d) embedding or head, as the reference draws it."""
    with _random(seed, _TOP.index(name)):
        table: np.ndarray = (torch.randn(vocab, width) / math.sqrt(width)).numpy()
        return table


class _Seeded:
    def __init__(self, shape: LMShape, seed: int) -> None:
        self.shape, self.seed = shape, seed
        self._held: tuple[int, dict[str, np.ndarray]] | None = None
        with torch.device("meta"):
            self._names = list(Griffin(shape).state_dict())

    def makers(self) -> dict[str, Callable[[], np.ndarray]]:
        return {name: self._maker(name) for name in self._names}

    def _maker(self, name: str) -> Callable[[], np.ndarray]:
        if name in _TOP:
            return lambda: seeded_embedding(self.shape.vocab, self.shape.width, self.seed, name)
        if not name.startswith("layers."):
            return lambda: np.zeros(self.shape.width, np.float32)
        _, index, inner = name.split(".", 2)
        return lambda: self._layer(int(index))[inner]

    def _layer(self, i: int) -> Mapping[str, np.ndarray]:
        if self._held is None or self._held[0] != i:
            with _random(self.seed, len(_TOP) + i):
                layer: nn.Module = ResidualBlock(self.shape, self.shape.blocks[i])
            self._held = (i, {k: v.numpy() for k, v in layer.state_dict().items()})
        return self._held[1]


@contextmanager
def _random(seed: int, place: int) -> Iterator[None]:
    """torch's random numbers from (seed, place); the caller's are put back afterwards."""
    kept = torch.random.get_rng_state()
    torch.manual_seed(
        int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )
    try:
        yield
    finally:
        torch.random.set_rng_state(kept)

"""k-means in plain torch, seeded; enough for a million points of 512 numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def nearest(points: Tensor, centres: Tensor, batch: int = 65_536) -> Tensor:
    """Index of the nearest centre of each point, (m,) int64."""
    half = centres.square().sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in _parts(points, batch)])


def _parts(points: Tensor, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(points), batch):
        yield points[start : start + batch]


def k_means(points: Tensor, k: int, *, steps: int, generator: torch.Generator) -> Tensor:
    """Centres (k, d) by k-means++ on a sample, then Lloyd's steps; empty clusters restart at far points."""
    few = points[torch.randperm(len(points), generator=generator)[: 40 * k]]
    centres = few[:1]
    gap = (few - centres[0]).square().sum(1)
    for _ in range(k - 1):
        chosen = torch.multinomial(gap.clamp(min=0), 1, generator=generator)
        centres = torch.cat([centres, few[chosen]])
        gap = torch.minimum(gap, (few - few[chosen]).square().sum(1))
    for _ in range(steps):
        at = nearest(points, centres)
        counts = torch.bincount(at, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, at, points)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            centres[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return centres

"""k-means and linear discriminants in plain torch, seeded; enough for a million frames of 512 numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(points: Tensor, centres: Tensor, batch: int = 65_536) -> Tensor:
    """Index of the nearest centre of each point, (m,) int64."""
    half = centres.square().sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in points.split(batch)])


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


def discriminants(
    points: Tensor, labels: Tensor, dimensions: int, shrink: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis: mean (d) and projection (d, dimensions) that whitens within-class scatter.

    What varies inside a class (here: who speaks, one phone state held fixed) is scaled to unit variance,
    so distances in the projection count only what tells classes apart.
    """
    points = points.double()
    mean = points.mean(0)
    centred = points - mean
    classes = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=classes).double()
    means = torch.zeros(classes, points.shape[1], dtype=torch.float64).index_add_(0, labels, centred)
    means = means / counts.clamp(min=1)[:, None]
    total = centred.T @ centred / len(points)
    between = (means * counts[:, None]).T @ means / len(points)
    within = total - between
    within += shrink * within.diagonal().mean() * torch.eye(len(within), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors / values.sqrt()
    strengths, directions = torch.linalg.eigh(whiten.T @ between @ whiten)
    order = strengths.argsort(descending=True)[:dimensions]
    return mean.float(), (whiten @ directions[:, order]).float()

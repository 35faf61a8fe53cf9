"""Linear discriminants in plain torch, beside the exporter's k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from speechssm.export.k_means import k_means, nearest

__all__ = ["discriminants", "k_means", "nearest"]


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

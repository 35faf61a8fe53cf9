"""From a bundle's weight files back to the training layout, so that the tree holds every weight once.

What a graph reads is made from parameters by moving, scaling and shifting numbers, except for the
recurrence's decay. So models whose parameters are their own addresses show where each number went, and
two more, all zeros and all ones, show the shift and the scale: nothing here knows a layer by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float32]
Weights = Callable[[nn.Module], Mapping[str, np.ndarray]]
KEPT = {".scale": 1.0}
"""Factors the codec's graphs have multiplied into a matrix: they stay one, and the matrix keeps the product."""
DIGIT = 4096
"""An address is two digits of this base: either is exact in float32 even when it was scaled."""
DECAY, LOG_DECAY = "lru.decay", "lru.log_decay"


def parameters(
    model: nn.Module, weights: Weights, stored: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """The ``state_dict`` of ``model``'s class that ``weights`` turns into ``stored``, in float32.

    ``model`` is of the right shape; its own numbers are overwritten. Raises ValueError when a parameter
    cannot be found in ``stored``.
    """
    codec = "codebooks" in model.state_dict()
    moved = {
        k: v
        for k, v in model.state_dict().items()
        if not (codec and k.endswith(tuple(KEPT))) and DECAY not in k
    }
    sizes = [v.numel() for v in moved.values()]
    starts = dict(zip(moved, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    total = sum(sizes)
    if total > DIGIT * DIGIT:
        raise ValueError(
            f"{total} parameters have no address of two digits each; the most is {DIGIT * DIGIT}"
        )
    zeros, ones = (_probe(model, weights, moved, f) for f in (torch.zeros_like, torch.ones_like))
    address = {n: torch.arange(starts[n], starts[n] + v.numel()) for n, v in moved.items()}
    low = _probe(model, weights, address, lambda of: of % DIGIT)
    high = _probe(model, weights, address, lambda of: of // DIGIT)
    found = np.full(total, np.nan, np.float32)
    for name in zeros:
        if name.endswith(LOG_DECAY) or name.startswith("rope."):
            continue
        scale = ones[name] - zeros[name]
        digits = (np.rint((made[name] - zeros[name]) / scale).astype(np.int64) for made in (high, low))
        at = next(digits) * DIGIT + next(digits)
        found[at.ravel()] = ((stored[name].astype(np.float32) - zeros[name]) / scale).ravel()
    out: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name in moved:
            part = found[starts[name] : starts[name] + value.numel()]
            out[name] = torch.from_numpy(part.copy()).view_as(value)
        elif name.endswith(DECAY):
            out[name] = _decay(stored[_log_decay_of(name)])
        else:
            out[name] = torch.full_like(value, KEPT[next(k for k in KEPT if name.endswith(k))])
    missing = [name for name, value in out.items() if not torch.isfinite(value).all()]
    if missing:
        raise ValueError(f"the bundle does not determine {missing[0]}")
    return out


@torch.no_grad()
def _probe(
    model: nn.Module,
    weights: Weights,
    moved: Mapping[str, torch.Tensor],
    number: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, NDArray[np.float64]]:
    """What the graphs would read if the ``moved`` parameters held ``number`` of what is given for them."""
    for name, value in model.state_dict().items():
        value.copy_(number(moved[name]).view_as(value) if name in moved else torch.ones(()))
    return _made(weights(model))


def _made(arrays: Mapping[str, np.ndarray]) -> dict[str, NDArray[np.float64]]:
    return {k: arrays[k].astype(np.float64) for k in arrays}


def _log_decay_of(name: str) -> str:
    """layers.3.temporal.lru.decay -> L03.lru.log_decay."""
    return f"L{int(name.split('.')[1]):02d}.{LOG_DECAY}"


def _decay(log_decay: np.ndarray) -> torch.Tensor:
    """The Lambda of -8 softplus(Lambda), in float64 on the way."""
    return torch.from_numpy(np.log(np.expm1(log_decay.astype(np.float64) / -8.0)).astype(np.float32))

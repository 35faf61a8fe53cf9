"""The same maths for torch.compile: what the kernels are timed against, in the same run."""

from __future__ import annotations

import torch
from torch import Tensor


def coefficients(x: Tensor, gate_x: Tensor, gate_a: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """log a and the drive sqrt(1 - a^2) i x, both float32 and shaped like x."""
    log_a = torch.sigmoid(gate_a.float()) * decay
    return log_a, torch.sqrt(-torch.expm1(2 * log_a)) * torch.sigmoid(gate_x.float()) * x.float()


def step(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, decay: Tensor, state: Tensor, first: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: x and gates (b,e), decay (e), state (b,e), first and active (b,1) bool -> y, state."""
    log_a, drive = coefficients(x, gate_x, gate_a, decay)
    h = torch.where(first, torch.sigmoid(gate_x.float()) * x.float(), torch.exp(log_a) * state + drive)
    h = torch.where(active, h, state)
    return h.to(x.dtype), h


def _after(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return first[0] * second[0], second[0] * first[1] + second[1]


def scan(x: Tensor, gate_x: Tensor, gate_a: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk by torch's associative scan: x and gates (t,b,e), decay (e), state (b,e) -> y, state."""
    from torch._higher_order_ops.associative_scan import associative_scan

    log_a, drive = coefficients(x, gate_x, gate_a, decay)
    a = torch.exp(log_a)
    drive = torch.cat([drive[:1] + a[:1] * state, drive[1:]])
    _, h = associative_scan(_after, (a, drive), dim=0, combine_mode="pointwise")
    return h.to(x.dtype), h[-1]

"""The linear recurrence h_t = a_t h_{t-1} + x_t over whole sequences, for training.

Cut into chunks of about the cube root of t: inside the chunks all go one position at a time, side by side; the
ends of the chunks are a shorter recurrence of the same kind, and what comes in from the left is added. That is four
passes over memory in place of the 2 log2(t) of a doubling scan, in 100 calls of small operators for 6 000 positions
where chunks of sqrt(t) take 230 (a GPU waits for each), and its gradient is the same walk backwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHORT = 16
"""Positions that are walked one by one."""


@torch.library.custom_op("speechssm::linear_scan", mutates_args=())
def linear_scan(a: Tensor, x: Tensor) -> Tensor:
    """a, x (b,t,e) of one dtype -> h (b,t,e) from h_{-1} = 0; differentiable in both.

    An operator of its own, so that ``torch.compile`` takes the walk as one node and does not unroll it.
    """
    return _walk(a, x)


@linear_scan.register_fake
def _(a: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    a, h = ctx.saved_tensors
    # g_t = grad_t + a_{t+1} g_{t+1}: the same recurrence from the other end.
    following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
    g = linear_scan(following.flip(1), grad.flip(1)).flip(1)
    return torch.cat([torch.zeros_like(g[:, :1]), g[:, 1:] * h[:, :-1]], 1), g


linear_scan.register_autograd(_backward, setup_context=_keep)


def _walk(a: Tensor, x: Tensor) -> Tensor:
    rows, t, width = x.shape
    if t <= SHORT:
        h = x.clone()
        for i in range(1, t):
            h[:, i].addcmul_(a[:, i], h[:, i - 1])
        return h
    chunk = round(t ** (1 / 3))
    chunks = -(-t // chunk)
    h = x.new_zeros(rows, chunks * chunk, width)
    h[:, :t] = x
    through = a.new_zeros(rows, chunks * chunk, width)
    through[:, :t] = a
    h, through = (v.view(rows, chunks, chunk, width) for v in (h, through))
    for j in range(1, chunk):
        h[:, :, j].addcmul_(through[:, :, j], h[:, :, j - 1])
        through[:, :, j].mul_(through[:, :, j - 1])
    ends = _walk(through[:, :-1, -1], h[:, :-1, -1])
    h[:, 1:].addcmul_(through[:, 1:], ends[:, :, None])
    return h.view(rows, chunks * chunk, width)[:, :t].contiguous()

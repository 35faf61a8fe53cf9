"""The number format of training's matrix products: bfloat16 where that is faster than float32."""

from __future__ import annotations

import time
from functools import cache

import torch

SIDE = 512
ROUNDS = 8


def narrow(device: str) -> torch.autocast:
    """Automatic bfloat16 on a GPU, and on a CPU that multiplies bfloat16 faster than float32.

    A CPU without instructions for bfloat16 (AMX, AVX-512 BF16) is slower in it, 82 against 145 GFLOP/s on one core
    of the machine the shipped codec was trained on, and pays for conversions besides.
    """
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or _bfloat16_pays())


@cache
def _bfloat16_pays() -> bool:
    return _seconds(torch.bfloat16) < 0.9 * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """Shortest processor time of one product."""
    left = torch.ones(SIDE, SIDE, dtype=dtype)
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        left @ left
        found.append(time.process_time() - began)
    return min(found)

"""``speechssm bench lm-gpu``: the paper's Figures 7 and 8 with all models in PyTorch, compiled and captured.

The same tables and plots as ``bench lm`` has; ceilings are measured on the device in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import torch

from speechssm.errors import SettingsError

from . import torch_lm
from .bench.result import Section
from .bench.run import Bench
from .contest import models_of
from .roofline import Roofline
from .throughput import compared

COPY_BYTES = 2 << 30
SIDE = 8192
TURN_S = 0.5
"""A GPU's steps are short and steady: hundreds of them."""


def ceilings(passes: int = 5) -> Roofline:
    """What the device copies (read plus written) and multiplies in bfloat16, on random data."""
    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    left, right = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    copied = 2 * COPY_BYTES / _least(lambda: target.copy_(source), passes)
    return Roofline(1, copied, copied, 2 * SIDE**3 / _least(lambda: left @ right, passes))


def _least(job: Callable[[], object], passes: int) -> float:
    job()
    found = []
    for _ in range(passes):
        torch.cuda.synchronize()
        started = time.perf_counter()
        job()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


class DeviceBench(Bench):
    """A bench whose ceilings are the device's."""

    @cached_property
    def roofline(self) -> Roofline:
        """See :func:`ceilings`. A step cannot read faster than a copy reads and writes."""
        return ceilings()


def run(bench: Bench) -> Section:
    """Measure and report. Raises SettingsError where there is no GPU."""
    if not torch.cuda.is_available():
        raise SettingsError("torch sees no CUDA device: run this on a machine with one")
    models = [torch_lm.contestant(name, shape) for name, shape in models_of(bench.settings.shape).items()]
    how = "All are the reference in PyTorch, compiled, with caches changed in place, each step one CUDA graph"
    found = compared(DeviceBench(bench.settings, bench.work), models, how, TURN_S)
    title = "Language model on a GPU: Griffin and Transformers in PyTorch"
    return found.model_copy(update={"name": "lm-gpu", "title": title})

"""The reference's half of a parity report: PyTorch, forced with the engine's tokens, layer by layer.

Every layer reads the whole rollout before the next one begins, so that memory holds one layer's
weights whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from speechssm.bundle.shapes import LMShape

from ..models.griffin import ResidualBlock, RMSNorm, lm_state

Parameters = Mapping[str, np.ndarray]
OnState = Callable[[int, str, np.ndarray], None]
"""Called with a number of steps, a state tensor's name, and its value (b, ...) after those steps."""
OnLogits = Callable[[int, np.ndarray], None]
"""Called with a first step and the logits (b,t,v) of the steps from there on."""

SEGMENT = 512
"""Most tokens a layer reads at once; the recurrence carries its state from one segment to the next."""


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """PyTorch on so many threads (0: as many as it has), for as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def follow(
    shape: LMShape,
    parameters: Parameters,
    tokens: np.ndarray,
    keep: list[int],
    on_state: OnState,
    on_logits: OnLogits,
) -> None:
    """Run tokens (b,t) through the model from an empty state, reporting states after ``keep`` steps.

    ``parameters`` are those of :class:`speechssm.export.models.griffin.Griffin`, by name.
    """
    rows, steps = tokens.shape
    x = torch.from_numpy(parameters["embed"][tokens].astype(np.float32)) * shape.embedding_scale
    ends = segments(steps, keep)
    schema = {s.name: s for s in lm_state(shape)}
    kept = set(keep)
    for i, block in enumerate(shape.blocks):
        layer = load_layer(shape, parameters, i)
        names = [
            f"L{i:02d}_{kind}" for kind in (("conv", "lru") if block == "recurrent" else ("key", "value"))
        ]
        state = [torch.zeros(rows, *schema[name].shape) for name in names]
        start = 0
        for end in ends:
            x[:, start:end], state = _through(layer, block, x[:, start:end], start, state)
            if end in kept:
                for name, tensor in zip(names, state, strict=True):
                    on_state(end, name, tensor.numpy())
            start = end
    norm = RMSNorm(shape.width, shape.norm_eps)
    norm.load_state_dict({"scale": _tensor(parameters["final_norm.scale"])})
    # Integer storages round the head apart from the embedding it is tied to.
    head = _tensor(parameters["head" if "head" in parameters else "embed"]).T
    start = 0
    for end in ends:
        logits = norm(x[:, start:end]) @ head
        if shape.soft_cap is not None:
            logits = shape.soft_cap * torch.tanh(logits / shape.soft_cap)
        on_logits(start, logits.numpy())
        start = end


def _through(
    layer: ResidualBlock, block: str, x: Tensor, start: int, state: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    position = torch.full((len(x),), start, dtype=torch.int64)
    first = (position[:, None] + torch.arange(x.shape[1])) == 0
    where = first if block == "recurrent" else position
    mixed, *after = layer.temporal(layer.temporal_norm(x), where, *state)
    x = x + mixed
    return x + layer.mlp(layer.channel_norm(x)), after


def load_layer(shape: LMShape, parameters: Parameters, i: int) -> ResidualBlock:
    """Layer ``i`` with its parameters, nothing else in memory."""
    with torch.device("meta"):
        layer = ResidualBlock(shape, shape.blocks[i])
    values = {name: _tensor(parameters[f"layers.{i}.{name}"]) for name in layer.state_dict()}
    layer.load_state_dict(values, assign=True)
    return layer.eval()


def segments(steps: int, keep: list[int]) -> list[int]:
    """Ends of the stretches the reference reads: every kept step count, and none longer than a segment."""
    ends: list[int] = []
    for end in sorted({*keep, steps}):
        while end - (ends[-1] if ends else 0) > SEGMENT:
            ends.append((ends[-1] if ends else 0) + SEGMENT)
        ends.append(end)
    return ends


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))

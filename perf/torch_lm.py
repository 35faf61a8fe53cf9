"""Griffin and its Transformers in PyTorch, as well as PyTorch does it: what ``bench lm`` compares on a GPU.

Caches are changed in place, everything between two attentions is compiled, and a step is one captured graph.
The heads that share keys are queries side by side, so a cache is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape
from speechssm.export.models.griffin import Griffin, LocalAttention, RecurrentBlock, ResidualBlock

from .capacity import Machine, StepFloor, step_seconds
from .lm import cache_words

DTYPE = torch.bfloat16
ITEM_BYTES = 2


class Decoder:
    """One model with the state of ``rows`` (b) sessions, as if ``position`` tokens had passed in each.

    Every call of :meth:`step` goes one position further. Rings have a slot more than the window, as a token
    attends to itself besides the w before it.
    """

    def __init__(
        self, model: Griffin, rows: int, position: int, *, room: int = 1, compiled: bool = False
    ) -> None:
        """``room`` tokens can follow where the cache grows; ``compiled`` for a GPU."""
        self.model, self.shape, self.position = model, model.shape, position
        s, like = model.shape, model.embed
        slots = position + room if s.cache == "grow" else s.window + 1
        ring = (rows, s.kv_heads, slots, s.head_dim)
        self.state: list[tuple[Tensor, Tensor]] = []
        held = 0.01 if position else 0.0
        for block in s.blocks:
            if block == "recurrent":
                conv = torch.full((rows, 3, s.lru_width), held, device=like.device)
                self.state.append((conv, torch.full((rows, s.lru_width), held, device=like.device)))
            else:
                key, value = (torch.full(ring, held, dtype=like.dtype, device=like.device) for _ in range(2))
                self.state.append((key, value))
        self.first = torch.full((rows,), position == 0, device=like.device)
        self.at = torch.full((rows,), position, device=like.device)
        make: Callable[[Any], Any] = torch.compile if compiled else lambda f: f
        self._recurrent, self._queries = make(recurrent), make(queries)
        self._after, self._logits = make(after_attention), make(Griffin.logits)

    def step(self, token: Tensor) -> Tensor:
        """token (b) -> logits (b,v) in float32; the state is moved on in place."""
        x = self.model.embed[token] * self.shape.embedding_scale
        for layer, (one, other) in zip(self.model.layers, self.state, strict=True):
            assert isinstance(layer, ResidualBlock)
            if isinstance(layer.temporal, RecurrentBlock):
                x, conv, lru = self._recurrent(layer, x, self.first, one, other)
                one.copy_(conv)
                other.copy_(lru)
            else:
                q, k, v = self._queries(layer, x, self.at)
                slots = one.shape[2]
                slot, seen = self.position % slots, min(self.position + 1, slots)
                one[:, :, slot], other[:, :, slot] = k, v
                y = F.scaled_dot_product_attention(q, one[:, :, :seen], other[:, :, :seen])
                x = self._after(layer, x, y)
        return cast(Tensor, self._logits(self.model, x))

    def move_on(self) -> None:
        """What follows a step, apart from it, since a captured step stays where it is."""
        self.position += 1
        self.at += 1
        self.first.fill_(False)


def recurrent(
    layer: ResidualBlock, x: Tensor, first: Tensor, conv: Tensor, lru: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A recurrent layer: x (b,d) and its states -> x and both states."""
    mixed, conv, lru = cast(RecurrentBlock, layer.temporal).step(layer.temporal_norm(x), first, conv, lru)
    x = x + mixed
    return x + layer.mlp(layer.channel_norm(x)), conv, lru


def queries(layer: ResidualBlock, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (b,d) -> q (b,g,h/g,k), k and v (b,g,k)."""
    return cast(LocalAttention, layer.temporal).project(layer.temporal_norm(x), at)


def after_attention(layer: ResidualBlock, x: Tensor, y: Tensor) -> Tensor:
    """x (b,d) and what attention gave, (b,g,h/g,k) -> (b,d)."""
    x = x + cast(LocalAttention, layer.temporal).out(y.flatten(1))
    return x + cast(Tensor, layer.mlp(layer.channel_norm(x)))


def sample(scores: Tensor) -> Tensor:
    """Tokens (b) drawn by their scores (b,v), by Gumbel's trick."""
    noise = torch.rand_like(scores).clamp_min_(1e-20).log_().neg_().log_()
    return (scores - noise).argmax(-1)


@dataclass(frozen=True)
class TorchContestant:
    """A model on the GPU whose step can be timed; weights are random and in bfloat16, as are keys and values."""

    name: str
    model: Griffin
    dtype: str = "bfloat16"
    ring_item_bytes: int = ITEM_BYTES

    @property
    def shape(self) -> LMShape:
        """Its shape."""
        return self.model.shape

    @property
    def cache(self) -> str:
        """What is kept of the past, in words."""
        return cache_words(self.shape)

    def rows_at(self, rows: int, position: int) -> Captured:
        """``rows`` sessions as if ``position`` tokens had passed."""
        return Captured(Decoder(self.model, rows, position, compiled=True), rows)

    def floor(self, machine: Machine, rows: int, position: int) -> StepFloor:
        """The shortest time a step can take on ``machine``."""
        return step_seconds(
            self.shape, machine, rows, position, weight_item_bytes=ITEM_BYTES, ring_item_bytes=ITEM_BYTES
        )


@dataclass
class Captured:
    """A step and the drawing of its token as one CUDA graph, replayed at one position again and again."""

    decoder: Decoder
    rows: int
    graph: torch.cuda.CUDAGraph = field(init=False)

    def __post_init__(self) -> None:
        token = torch.zeros(self.rows, dtype=torch.int64, device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    token.copy_(sample(self.decoder.step(token)))
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                token.copy_(sample(self.decoder.step(token)))

    def step(self) -> None:
        """One step of every row, to its end."""
        self.graph.replay()
        torch.cuda.synchronize()


def contestant(name: str, shape: LMShape) -> TorchContestant:
    """``shape`` with random weights on the GPU."""
    torch.manual_seed(0)
    # One row and many, of three models: more variants of a function than are kept by default.
    torch._dynamo.config.recompile_limit = 64
    with torch.device("cuda"):
        kept = torch.get_default_dtype()
        torch.set_default_dtype(DTYPE)
        try:
            model = Griffin(shape).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(kept)
    return TorchContestant(name, model)

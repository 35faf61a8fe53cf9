"""Griffin, the semantic language model, as plain PyTorch (arXiv 2402.19427; SpeechSSM section 3.2).

Two ways through the same parameters stand side by side:

* :meth:`Griffin.step` takes one token per row, written as the equations read;
* :meth:`Griffin.forward` takes many tokens at once, with a chunked scan for the recurrence
  and banded attention. It is what training uses.

Both continue from any state. State is a plain dict of tensors keyed as in the bundle
(``L03_lru``), because a state that is a value cannot leak from one stream into another.

The recurrence, its gates and the softmax are computed in float32 at least, whatever the weights are:
at a = 0.9999 a bfloat16 sqrt(1 - a^2) is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape
from speechssm.bundle.state import StateTensor

from .scan import linear_scan

RING_TINY = 1e-30
"""Least magnitude an int8 ring's scale is made from: a head of zeros is divided by it too."""
CONV_WIDTH = 4
"""Taps of the causal convolution in a recurrent block."""

State = dict[str, Tensor]


def lm_state(shape: LMShape) -> tuple[StateTensor, ...]:
    """State tensors of one row, sorted by name; position first in the tuple.

    Per recurrent layer ``lru`` (e) and ``conv`` (3,e); per attention layer rings ``key``, ``value``
    (w,g,k), slot = position modulo w, and where they are int8 the scale (w,g) of each.
    """
    tensors = [StateTensor(name="position", kind="position", shape=(), dtype="int64")]
    ring, grows = (shape.window, shape.kv_heads, shape.head_dim), shape.cache == "grow"
    for i, block in enumerate(shape.blocks):
        if block == "recurrent":
            tensors.append(
                StateTensor(name=f"L{i:02d}_conv", kind="conv", shape=(CONV_WIDTH - 1, shape.lru_width))
            )
            tensors.append(StateTensor(name=f"L{i:02d}_lru", kind="lru", shape=(shape.lru_width,)))
        else:
            for kind in ("key", "value"):
                name = f"L{i:02d}_{kind}"
                tensors.append(
                    StateTensor(
                        name=name, kind=kind, shape=ring, dtype=shape.ring, grows=grows, in_place=True
                    )
                )
                if shape.ring == "int8":
                    tensors.append(
                        StateTensor(name=f"{name}_scale", kind="scale", shape=ring[:2], grows=grows)
                    )
    return tuple(tensors)


def zero_state(shape: LMShape, rows: int, dtype: torch.dtype = torch.float32) -> State:
    """State of ``rows`` (b) streams that have seen nothing; narrow rings as the numbers they stand for."""
    return {
        s.name: torch.zeros(rows, *s.shape, dtype=torch.int64 if s.dtype == "int64" else dtype)
        for s in lm_state(shape)
        if s.kind != "scale"
    }


def as_kept(x: Tensor, ring: str) -> Tensor:
    """Keys or values (...,k) after a trip through a ring of type ``ring``, a scale for each head where int8."""
    if ring == "float32":
        return x
    if ring == "float16":
        return x.half().to(x.dtype)
    scale = x.abs().amax(-1, keepdim=True).clamp_min(RING_TINY) * (1 / 127)
    return torch.round(x / scale) * scale


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is when wider."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + scale); the mean square in float32 at least."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        wide = at_least_float32(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + at_least_float32(self.scale))).to(x.dtype)


class BlockDiagonal(nn.Module):
    """A linear map that mixes only inside each of h blocks: y[h,j] = sum_i u[h,i] w[h,i,j] + b[h,j]."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(blocks, width, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(blocks, width))

    def forward(self, u: Tensor) -> Tensor:
        """(..., e) -> (..., e)."""
        split = u.reshape(*u.shape[:-1], *self.bias.shape)
        return (
            torch.einsum("...hi,hij->...hj", split, self.weight.to(u.dtype)) + self.bias.to(u.dtype)
        ).flatten(-2)


class RGLRU(nn.Module):
    """The real-gated linear recurrent unit (Griffin section 2.4)."""

    def __init__(self, shape: LMShape) -> None:
        super().__init__()
        # a = exp(-8 softplus(decay)) starts uniform on the ring 0.9 <= a < 0.999 at r = 1.
        radius = torch.empty(shape.lru_width).uniform_(0.9**2 + 1e-8, 0.999**2).sqrt()
        self.decay = nn.Parameter(torch.log(torch.expm1(-torch.log(radius) / 8)))
        self.input_gate = BlockDiagonal(shape.heads, shape.gate_width)
        self.recurrence_gate = BlockDiagonal(shape.heads, shape.gate_width)

    def coefficients(self, u: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and sqrt(1 - a_t^2) i_t u_t of every position, the two terms of the recurrence.

        ``u`` is (..., e); ``first`` (...) marks position 0, where a = 0 and the factor is 1.
        """
        u = at_least_float32(u)
        i = torch.sigmoid(self.input_gate(u))
        r = torch.sigmoid(self.recurrence_gate(u))
        log_a = -8.0 * r * F.softplus(at_least_float32(self.decay)).to(u.dtype)
        a = torch.exp(log_a).masked_fill(first[..., None], 0.0)
        # The gradient of sqrt is unbounded as a -> 1; the clamp is far below one float32 step of a^2.
        factor = torch.sqrt((-torch.expm1(2.0 * log_a)).clamp_min(1e-12)).masked_fill(first[..., None], 1.0)
        return a, factor * i * u

    def step(self, u: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """h_t from (b,e) input and (b,e) state: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t."""
        a, x = self.coefficients(u, first)
        return a * state + x

    def scan(self, u: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """All h_t of (b,t,e) inputs from a (b,e) state."""
        a, x = self.coefficients(u, first)
        h: Tensor = linear_scan(a, torch.cat([x[:, :1] + a[:, :1] * state[:, None], x[:, 1:]], 1))
        return h


class RecurrentBlock(nn.Module):
    """Gated recurrent block: out(lru(conv(x W_x)) * act(x W_y))."""

    def __init__(self, shape: LMShape) -> None:
        super().__init__()
        d, e = shape.width, shape.lru_width
        self.linear_x = nn.Linear(d, e)
        self.linear_y = nn.Linear(d, e)
        self.linear_out = nn.Linear(e, d)
        self.conv_weight = nn.Parameter(torch.randn(CONV_WIDTH, e) / math.sqrt(CONV_WIDTH))
        self.conv_bias = nn.Parameter(torch.zeros(e))
        self.lru = RGLRU(shape)
        self.activation = ACTIVATIONS[shape.activation]

    def step(self, x: Tensor, first: Tensor, conv: Tensor, lru: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b,d) with state conv (b,3,e), lru (b,e) -> (b,d) and both states."""
        y = self.activation(self.linear_y(x))
        u = self.linear_x(x)
        taps = torch.cat([conv.to(u.dtype), u[:, None]], 1)
        u = (taps * self.conv_weight).sum(1) + self.conv_bias
        lru = self.lru.step(u, first, lru)
        return self.linear_out(lru.to(x.dtype) * y), taps[:, 1:].to(conv.dtype), lru

    def forward(self, x: Tensor, first: Tensor, conv: Tensor, lru: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b,t,d) with the same states -> (b,t,d) and both states after the last position."""
        t = x.shape[1]
        y = self.activation(self.linear_y(x))
        taps = torch.cat([conv.to(x.dtype), self.linear_x(x)], 1)
        u = sum((taps[:, j : j + t] * self.conv_weight[j] for j in range(CONV_WIDTH)), self.conv_bias)
        h = self.lru.scan(u, first, lru)
        return self.linear_out(h.to(x.dtype) * y), taps[:, t:].to(conv.dtype), h[:, -1]


class LocalAttention(nn.Module):
    """Grouped-query attention over the w previous positions and the position itself (w + 1 in all)."""

    def __init__(self, shape: LMShape) -> None:
        super().__init__()
        d, k = shape.width, shape.head_dim
        self.shape = shape
        self.q = nn.Linear(d, shape.heads * k, bias=False)
        self.k = nn.Linear(d, shape.kv_heads * k, bias=False)
        self.v = nn.Linear(d, shape.kv_heads * k, bias=False)
        self.out = nn.Linear(shape.heads * k, d)

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(...,d) at ``position`` (...) -> q (...,g,h/g,k), k and v (...,g,k), rotated where the shape asks."""
        s = self.shape
        q = self.q(x).unflatten(-1, (s.kv_heads, s.heads // s.kv_heads, s.head_dim))
        k = self.k(x).unflatten(-1, (s.kv_heads, s.head_dim))
        v = self.v(x).unflatten(-1, (s.kv_heads, s.head_dim))
        if s.rope == "half":
            q, k = (
                rotate_half(q, position[..., None, None], s.rope_base),
                rotate_half(k, position[..., None], s.rope_base),
            )
        return q, k, v

    def step(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b,d) with rings key, value (b,w,g,k) -> (b,d) and both rings. Attend first, then write."""
        w = self.shape.window
        q, k, v = self.project(x, position)
        # The token itself is seen as it is; what is kept of it may be narrower.
        keys = torch.cat([key.to(x.dtype), k[:, None]], 1)
        values = torch.cat([value.to(x.dtype), v[:, None]], 1)
        slots = torch.arange(w + 1, device=x.device)
        seen = (slots < position[:, None]) | (slots == w)
        y = self.out(attend(q[:, None], keys, values, seen[:, None])[:, 0])
        rows, slot = torch.arange(len(x), device=x.device), position % w
        key, value = key.clone(), value.clone()
        kept = (as_kept(z, self.shape.ring).to(key.dtype) for z in (k, v))
        key[rows, slot], value[rows, slot] = kept
        return y, key, value

    def forward(
        self, x: Tensor, position: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(b,t,d) from ``position`` (b) -> (b,t,d) and both rings.

        Banded: queries are cut in blocks of w; a block needs the keys of the block before it and its
        own. The ring, unrolled into time order, is the block before the first.
        """
        w, t, b = self.shape.window, x.shape[1], len(x)
        times = torch.arange(t, device=x.device)
        q, k, v = self.project(x, position[:, None] + times)
        unrolled = (position[:, None] + torch.arange(w, device=x.device)) % w
        rows = torch.arange(b, device=x.device)[:, None]
        kept_k, kept_v = as_kept(k, self.shape.ring), as_kept(v, self.shape.ring)
        keys = torch.cat([key[rows, unrolled].to(x.dtype), kept_k], 1)
        values = torch.cat([value[rows, unrolled].to(x.dtype), kept_v], 1)
        own = None if self.shape.ring == "float32" else (k, v)
        y = []
        for start in range(0, t, w):
            stop = min(start + w, t)
            i = torch.arange(start, stop, device=x.device)[:, None] + w
            j = torch.arange(start, stop + w, device=x.device)
            banded = (j <= i) & (j >= i - w)
            real = j >= w - position[:, None]
            seen = banded & real[:, None]
            past = keys[:, start : stop + w], values[:, start : stop + w]
            if own is None:
                y.append(attend(q[:, start:stop], *past, seen))
            else:
                itself = (z[:, start:stop] for z in own)
                y.append(attend_apart(q[:, start:stop], *past, seen & (j < i), *itself))
        out = self.out(torch.cat(y, 1))
        slot = (position[:, None] + t + torch.arange(w, device=x.device)) % w
        new_key, new_value = torch.empty_like(key), torch.empty_like(value)
        new_key[rows, slot], new_value[rows, slot] = keys[:, t:].to(key.dtype), values[:, t:].to(value.dtype)
        return out, new_key, new_value


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """q (b,t,g,h/g,k) over keys and values (b,s,g,k) where ``seen`` (b,t,s) -> (b,t,h*k)."""
    scores = at_least_float32(torch.einsum("btghk,bsgk->bgths", q * q.shape[-1] ** -0.5, k))
    weights = torch.softmax(scores.masked_fill(~seen[:, None, :, None], -torch.inf), -1)
    return torch.einsum("bgths,bsgk->btghk", weights.to(v.dtype), v).flatten(-3)


def attend_apart(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
    """:func:`attend` over a past that is kept narrower, and over each query's own key and value (b,t,g,k)."""
    scaled = q * q.shape[-1] ** -0.5
    past = at_least_float32(torch.einsum("btghk,bsgk->bgths", scaled, k))
    past = past.masked_fill(~seen[:, None, :, None], -torch.inf)
    itself = at_least_float32(torch.einsum("btghk,btgk->bgth", scaled, own_k))[..., None]
    weights = torch.softmax(torch.cat([past, itself], -1), -1).to(v.dtype)
    y = torch.einsum("bgths,bsgk->btghk", weights[..., :-1], v)
    y = y + torch.einsum("bgth,btgk->btghk", weights[..., -1], own_v)
    return y.flatten(-3)


def rotate_half(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Rotary embedding on the first half of each head; angles in float64, right at any position.

    ``x`` is (...,k), ``position`` broadcasts to (...).
    """
    rotated, plain = x.chunk(2, -1)
    frequencies = base ** (
        -2 * torch.arange(rotated.shape[-1] // 2, device=x.device).double() / rotated.shape[-1]
    )
    angle = position.double()[..., None] * frequencies
    cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    first, second = rotated.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, plain], -1)


class MLP(nn.Module):
    """Gated MLP: down(act(gate(x)) * up(x))."""

    def __init__(self, shape: LMShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.mlp_width)
        self.up = nn.Linear(shape.width, shape.mlp_width)
        self.down = nn.Linear(shape.mlp_width, shape.width)
        self.activation = ACTIVATIONS[shape.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        out: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return out


class ResidualBlock(nn.Module):
    """x + temporal(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: LMShape, block: str) -> None:
        super().__init__()
        self.temporal_norm = RMSNorm(shape.width, shape.norm_eps)
        self.temporal = RecurrentBlock(shape) if block == "recurrent" else LocalAttention(shape)
        self.channel_norm = RMSNorm(shape.width, shape.norm_eps)
        self.mlp = MLP(shape)


class Griffin(nn.Module):
    """The whole model: tied embedding, residual blocks, final norm, soft-capped logits."""

    def __init__(self, shape: LMShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.width) / math.sqrt(shape.width))
        self.layers = nn.ModuleList(ResidualBlock(shape, block) for block in shape.blocks)
        self.final_norm = RMSNorm(shape.width, shape.norm_eps)
        self.head = (
            None
            if shape.tied_head
            else nn.Parameter(torch.randn(shape.vocab, shape.width) / math.sqrt(shape.width))
        )

    def forward(self, tokens: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, State]:
        """tokens (b,t) -> logits (b,t,v) in float32 at least, and the state after the last token."""
        return self._run(tokens, state, step=False)

    def step(self, token: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """token (b) -> logits (b,v) and the next state."""
        return self._run(token, state, step=True)

    def _run(self, tokens: Tensor, state: Mapping[str, Tensor] | None, *, step: bool) -> tuple[Tensor, State]:
        if state is None:
            state = {
                k: v.to(tokens.device)
                for k, v in zero_state(self.shape, len(tokens), at_least_float32(self.embed).dtype).items()
            }
        position = state["position"]
        first = position == 0
        if not step:
            first = (position[:, None] + torch.arange(tokens.shape[1], device=tokens.device)) == 0
        new: State = {"position": position + (1 if step else tokens.shape[1])}
        x = self.embed[tokens] * self.shape.embedding_scale
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, ResidualBlock)
            names = ("conv", "lru") if self.shape.blocks[i] == "recurrent" else ("key", "value")
            old = [state[f"L{i:02d}_{name}"] for name in names]
            where = first if self.shape.blocks[i] == "recurrent" else position
            run = layer.temporal.step if step else layer.temporal.forward
            mixed, *after = run(layer.temporal_norm(x), where, *old)
            new.update({f"L{i:02d}_{name}": value for name, value in zip(names, after, strict=True)})
            x = x + mixed
            x = x + layer.mlp(layer.channel_norm(x))
        return self.logits(x), new

    def logits(self, x: Tensor) -> Tensor:
        """What the last block gave, (...,d) -> (...,v) in float32 at least, soft-capped."""
        scores = at_least_float32(self.final_norm(x) @ (self.embed if self.head is None else self.head).T)
        cap = self.shape.soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu_tanh": _gelu_tanh, "gelu": F.gelu, "silu": F.silu}
"""Activations by the name the shape gives them."""

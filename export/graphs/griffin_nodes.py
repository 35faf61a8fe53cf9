"""Nodes of the Griffin layers, shared by the step and the chunk graph.

What is per token (norms, projections, gates, MLP) works on rows (r,d) and does not care whether the
rows are b streams or t x b tokens. What carries state takes exactly one token for each of b streams;
the chunk graph puts the same nodes inside a Scan. Equal nodes on equal shapes are what makes whole,
chunked and stepwise runs equal bit for bit (S1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from onnx import TensorProto, helper

from speechssm.bundle import limits
from speechssm.bundle.shapes import LMShape

from ..models.griffin import CONV_WIDTH, RING_TINY
from .builder import FLOAT, FLOAT16, INT64, GraphBuilder
from .exact import row_mean, row_sum

PART = "lm"
"""The bundle part whose safetensors file holds the weights."""
_ONE = helper.make_tensor("one", INT64, [1], [1])
Ring = tuple[str, ...]
"""Keys or values of past tokens: the numbers, and their scale where they are int8."""
RING_TYPES = {"float16": FLOAT16, "int8": TensorProto.INT8}
LOGITS = "lm_logits"
"""Name of the value (b,v) inside ``lm_step`` that the parity report reads."""


@dataclass(frozen=True)
class Nodes:
    """Emits nodes into ``g`` for a model of ``shape`` whose weights are stored as ``stored``."""

    g: GraphBuilder
    shape: LMShape
    stored: int = FLOAT
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where the token of a position goes, by the position's name: every ring of a row is written alike."""
    linear_op: ClassVar[bool] = False
    """Whether linear layers and what lies between them are operators (:mod:`.linear_function`)."""
    ring_op: bool = False
    """Whether attention is one node of the domain ``speechssm`` (:mod:`.ring_function`)."""

    # weights

    def matrix(self, name: str, rows: int, columns: int) -> str:
        """A (rows, columns) weight in the bundle's storage type."""
        return self.g.weight(PART, name, (rows, columns), self.stored)

    def raw_matrix(self, name: str, *sizes: int) -> str:
        """As :meth:`matrix`, of any axes and not widened: for operators that read what is stored."""
        return self.g.packed(PART, name, sizes, self.stored)

    def vector(self, name: str, *sizes: int) -> str:
        """A small weight, always float32: norms, biases and decay decide the accuracy of everything."""
        return self.g.weight(PART, name, sizes, FLOAT)

    # rows

    def embed(self, tokens: str) -> str:
        """tokens (r) -> (r,d), scaled."""
        s = self.shape
        table = self.matrix("embed", s.vocab, s.width)
        rows = self.g.op("Gather", table, tokens, axis=0)
        return self.g.op("Mul", rows, self.g.const(np.float32(s.embedding_scale)))

    def embed_narrow(self, tokens: str, stored: int) -> str:
        """:meth:`embed` of a table ``stored`` narrow: rows are gathered before they are widened."""
        g, s = self.g, self.shape
        rows = g.op("Gather", g.packed(PART, "embed", (s.vocab, s.width), stored), tokens, axis=0)
        return g.op("Mul", g.op("Cast", rows, to=FLOAT), g.const(np.float32(s.embedding_scale)))

    def norm(self, x: str, name: str) -> str:
        """RMSNorm over the last axis of (r,d); the stored vector is 1 + scale."""
        return self.rms_norm(x, self.vector(name, self.shape.width))

    def rms_norm(self, x: str, scale: str) -> str:
        """:meth:`norm` with the value ``scale`` (d)."""
        g = self.g
        mean = row_mean(g, g.op("Mul", x, x), self.shape.width)
        rms = g.op("Sqrt", g.op("Add", mean, g.const(np.float32(self.shape.norm_eps))))
        return g.op("Mul", g.op("Div", x, rms), scale)

    def product(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """x (r, fan_in) times the matrix of linear layer ``name`` -> (r, fan_out)."""
        return self.g.op("MatMul", x, self.matrix(f"{name}.weight", fan_in, fan_out))

    def unembed(self, x: str, value: str) -> str:
        """x (r,d) times the transposed embedding or head -> (r,v), called ``value``."""
        s = self.shape
        head = self.matrix("embed" if s.tied_head else "head", s.vocab, s.width)
        return self.g.op("Gemm", x, head, transB=1, name=value)

    def linear(self, x: str, name: str, fan_in: int, fan_out: int, *, bias: bool = True) -> str:
        """(r, fan_in) -> (r, fan_out)."""
        y = self.product(x, name, fan_in, fan_out)
        return self.g.op("Add", y, self.vector(f"{name}.bias", fan_out)) if bias else y

    def activation(self, x: str) -> str:
        """The shape's activation."""
        g = self.g
        if self.shape.activation == "silu":
            # x sigmoid(x) would be fused into one operator whose SIMD tail depends on the number of rows.
            return g.op("Div", x, g.op("Add", g.op("Exp", g.op("Neg", x)), g.const(np.float32(1))))
        return g.op("Gelu", x, approximate="tanh" if self.shape.activation == "gelu_tanh" else "none")

    def activated_linear(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """(r, fan_in) -> (r, fan_out), with the shape's activation."""
        return self.activation(self.linear(x, name, fan_in, fan_out))

    def add_linear(self, residual: str, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """``residual`` (r, fan_out) plus the layer's (r, fan_in) -> (r, fan_out)."""
        return self.g.op("Add", residual, self.linear(x, name, fan_in, fan_out))

    def add_mlp(self, residual: str, x: str, name: str) -> str:
        """``residual`` (r,d) plus the gated layer's (r,d) -> (r,d)."""
        s = self.shape
        gate = self.activated_linear(x, f"{name}.gate", s.width, s.mlp_width)
        up = self.linear(x, f"{name}.up", s.width, s.mlp_width)
        return self.add_linear(residual, self.g.op("Mul", gate, up), f"{name}.down", s.mlp_width, s.width)

    def logits(self, x: str) -> str:
        """(r,d) -> (r,v), soft-capped."""
        g, s = self.g, self.shape
        if s.soft_cap is None:
            return self.unembed(x, LOGITS)
        y = self.unembed(x, "unembed")
        cap = g.const(np.float32(s.soft_cap))
        return g.op("Mul", g.op("Tanh", g.op("Div", y, cap)), cap, name=LOGITS)

    def gates(self, u: str, name: str) -> tuple[str, str]:
        """u (r,e) -> pre-activations of the input gate and of the recurrence gate, both (r,e).

        One MatMul with a constant (e/h, 2e/h) for each block of the block-diagonal maps: a single
        batched product (MatMul or Einsum) takes another path for one row than for several, and its
        weights are not prepacked.
        """
        g, s = self.g, self.shape
        e = s.gate_width
        blocks = [u] if s.heads == 1 else g.ops("Split", u, outputs=s.heads, axis=1, num_outputs=s.heads)
        mapped = [
            g.op("MatMul", block, self.matrix(f"{name}.gates.{j}", e, 2 * e))
            for j, block in enumerate(blocks)
        ]
        return self.gate_halves(mapped, self.vector(f"{name}.gates.bias", 2 * s.lru_width))

    def gate_halves(self, mapped: list[str], bias: str) -> tuple[str, str]:
        """Each head's (r,2e/h), and the biases (2e), -> both gates' pre-activations (r,e)."""
        g, s = self.g, self.shape
        e = s.gate_width
        both = mapped[0] if s.heads == 1 else g.op("Concat", *mapped, axis=1)
        both = g.op("Add", both, bias)
        halves = g.ops(
            "Split", g.op("Reshape", both, g.const([-1, s.heads, 2, e])), outputs=2, axis=2, num_outputs=2
        )
        i, r = (g.op("Reshape", half, g.const([-1, s.lru_width])) for half in halves)
        return i, r

    def decay(self, name: str) -> str:
        """-8 softplus(Lambda), (e), folded at export."""
        return self.vector(f"{name}.log_decay", self.shape.lru_width)

    def conv(self, taps: list[str], name: str) -> str:
        """Four taps (r,e), oldest first -> (r,e)."""
        bias = self.vector(f"{name}.conv.bias", self.shape.lru_width)
        return self.weighted(taps, self.tap_weights(name), bias)

    def tap_weights(self, name: str) -> list[str]:
        """The weights (e) of the four taps, oldest first."""
        return [self.vector(f"{name}.conv.{j}", self.shape.lru_width) for j in range(CONV_WIDTH)]

    def weighted(self, taps: list[str], weights: list[str], bias: str) -> str:
        """The bias and then each tap times its weight, in one fixed order of additions."""
        g, y = self.g, bias
        for tap, weight in zip(taps, weights, strict=True):
            y = g.op("Add", y, g.op("Mul", tap, weight))
        return y

    # one token for each stream

    def attend(self, q: str, k: str, v: str, key: Ring, value: Ring, position: str) -> tuple[str, str]:
        """q (b,h*k), k and v (b,g,1,k), rings (b,w,g,k), position (b,1) -> (b,h*k) and the raw scores.

        The scores are laid out [ring slots 0..w-1 | self]. Ring and self are multiplied apart, so that
        the ring is read where it lies and never copied beside the new key.
        """
        g, s = self.g, self.shape
        group = s.heads // s.kv_heads
        q = g.op("Reshape", q, g.const([-1, s.kv_heads, group, s.head_dim]))
        # A single query row would take MLAS's vector path, whose sums depend on the shape: two rows do not.
        doubled = s.heads == 1
        if doubled:
            q = g.op("Concat", q, q, axis=2)
        ring_k, ring_v = (self.flat_ring(self.widened(ring)) for ring in (key, value))
        past = g.op("MatMul", self.spread(q), g.op("Transpose", ring_k, perm=[0, 2, 1]))
        rows = 2 if doubled else group
        past = self.scaled(g.op("Reshape", past, g.const([0, s.kv_heads, rows, -1])), key)
        own = row_sum(g, g.op("Mul", q, k), s.head_dim)
        filled = g.op("Unsqueeze", g.op("Less", self.slots(key[0]), position), g.const([1, 2]))
        masked = g.op("Where", filled, past, g.const(np.float32(-np.inf)))
        weights = g.op("Softmax", g.op("Concat", masked, own, axis=-1), axis=-1)
        to_ring, to_self = self.ring_and_self(weights)
        if len(value) > 1:
            # A slot no token has reached has weight 0, but its scale may be anything.
            to_ring = g.op("Where", filled, self.scaled(to_ring, value), g.const(np.float32(0)))
        flat = g.op("Reshape", to_ring, g.const([0, rows * s.kv_heads, -1]))
        y = g.op("Add", self.gathered(g.op("MatMul", flat, ring_v), rows), g.op("Mul", to_self, v))
        if doubled:
            y = g.op("Slice", y, g.const([0]), g.const([1]), g.const([2]))
        return g.op("Reshape", y, g.const([-1, s.heads * s.head_dim])), past

    def slots(self, ring: str) -> str:
        """Numbers 0..w-1 of the slots of ``ring``."""
        return self.g.const(np.arange(self.shape.window, dtype=np.int64))

    def slot_of(self, ring: str, position: str, active: str) -> tuple[str, str]:
        """The slot that ``position`` is written to, and whether it is; all (b,1)."""
        return self.g.op("Mod", position, self.g.const(np.int64(self.shape.window))), active

    def overflow(self, ring: str, position: str) -> list[str]:
        """Checks (b), 0 or NaN, that the cache had room up to ``position`` (b); a ring always has."""
        return []

    def ring_and_self(self, weights: str) -> tuple[str, str]:
        """Attention weights (..., w+1) -> those of the ring and that of the token itself."""
        to_ring, to_self = self.g.ops(
            "Split", weights, self.g.const([self.shape.window, 1]), outputs=2, axis=-1
        )
        return to_ring, to_self

    def flat_ring(self, ring: str) -> str:
        """(b,w,g,k) -> (b,w,g*k): free, as the heads of a slot lie side by side."""
        return self.g.op("Reshape", ring, self.g.const([0, 0, -1]))

    def spread(self, q: str) -> str:
        """q (b,g,h/g,k) -> (b,h,g*k): each query on the columns of its own key head, zero on the others.

        One product of all heads with the ring as it lies. A product for each head would need the ring
        heads first, and copying a whole cache transposed costs more than the zeros (perf/reports/LOG.md).
        """
        g, s = self.g, self.shape
        if s.kv_heads > 1:
            q = g.op("Mul", g.op("Unsqueeze", q, g.const([3])), self.own_head())
        return g.op("Reshape", q, g.const([0, -1, s.kv_heads * s.head_dim]))

    def gathered(self, y: str, rows: int) -> str:
        """y (b,h,g*k), each query's sums over the values of every head -> (b,g,rows,k), those of its own."""
        g, s = self.g, self.shape
        if s.kv_heads == 1:
            return g.op("Reshape", y, g.const([0, 1, rows, s.head_dim]))
        y = g.op("Reshape", y, g.const([0, s.kv_heads, rows, s.kv_heads, s.head_dim]))
        return g.op("ReduceSum", g.op("Mul", y, self.own_head()), g.const([3]), keepdims=0)

    def own_head(self) -> str:
        """(1,g,1,g,1): 1 where a query's key/value head is the ring's, 0 elsewhere."""
        heads = self.shape.kv_heads
        return self.g.const(np.eye(heads, dtype=np.float32).reshape(1, heads, 1, heads, 1))

    def widened(self, ring: Ring) -> str:
        """Numbers of a ring as float32, its scale left out."""
        return ring[0] if self.shape.ring == "float32" else self.g.op("Cast", ring[0], to=FLOAT)

    def scaled(self, x: str, ring: Ring) -> str:
        """x (b,g,h/g,w) times the scale of each slot, where the ring has one."""
        if len(ring) == 1:
            return x
        g = self.g
        return g.op("Mul", x, g.op("Unsqueeze", g.op("Transpose", ring[1], perm=[0, 2, 1]), g.const([2])))

    def write_ring(self, ring: Ring, new: str, position: str, active: str) -> Ring:
        """Put ``new`` (b,g,1,k) in the slot of ``position`` of active rows; ``position``, ``active`` are (b,1).

        One row of the ring is gathered, chosen and scattered back: a Where over the whole ring, for all
        that it moves the same bytes, takes twice as long.
        """
        g = self.g
        index, here = self._place(ring[0], position, active)
        new = g.op("Squeeze", new, g.const([2]))
        if self.shape.ring != "int8":
            return (self._written(ring[0], index, here, new),)
        largest = g.op("ReduceMax", g.op("Abs", new), g.const([2]), keepdims=1)
        least, share = g.const(np.float32(RING_TINY)), g.const(np.float32(1 / 127))
        scale = g.op("Mul", g.op("Max", largest, least), share)
        number = g.op("Round", g.op("Div", new, scale))
        flat = g.op("Squeeze", here, g.const([2]))
        scales = g.op(
            "ScatterND", ring[1], index,
            g.op("Where", flat, g.op("Squeeze", scale, g.const([2])), g.op("GatherND", ring[1], index)),
        )  # fmt: skip
        return self._written(ring[0], index, here, number), scales

    def _written(self, ring: str, index: str, here: str, new: str) -> str:
        """``ring`` with the row ``new`` (b,g,k), float32, at ``index`` where ``here`` holds."""
        g, narrow = self.g, RING_TYPES.get(self.shape.ring)
        old = g.op("GatherND", ring, index)
        if narrow is None:
            return g.op("ScatterND", ring, index, g.op("Where", here, new, old))
        # Through float32 and back nothing changes, and no engine lacks a Where of float32.
        chosen = g.op("Where", here, new, g.op("Cast", old, to=FLOAT))
        return g.op("ScatterND", ring, index, g.op("Cast", chosen, to=narrow))

    def _place(self, ring: str, position: str, active: str) -> tuple[str, str]:
        """(row, slot) pairs (b,2) and the mask (b,1,1) of the rows that are written; shared by all rings."""
        if position not in self.places:
            g = self.g
            slot, active = self.slot_of(ring, position, active)
            one = g.op("ConstantOfShape", g.op("Shape", slot), value=_ONE)
            rows = g.op("CumSum", one, g.const(np.int64(0)), exclusive=1)
            index = g.op("Concat", rows, slot, axis=1)
            self.places[position] = index, g.op("Unsqueeze", active, g.const([2]))
        return self.places[position]

    def rotation(self, position: str) -> tuple[str, str] | None:
        """cos and sin (r,1,1,k/4) of the angles at ``position`` (r), or None where the shape has no RoPE.

        Positions split in a high and a low part, each looked up in a table made in float64, joined by
        the angle-sum identity: the error stays one rounding at any position.
        """
        g, s = self.g, self.shape
        if s.rope == "none":
            return None
        low = g.op("Mod", position, g.const(np.int64(LOW_POSITIONS)))
        high = g.op("Div", position, g.const(np.int64(LOW_POSITIONS)))
        cl, sl, ch, sh = (
            g.op("Gather", self.vector(f"rope.{name}", rows, s.head_dim // 4), part, axis=0)
            for name, rows, part in (
                ("cos_low", LOW_POSITIONS, low),
                ("sin_low", LOW_POSITIONS, low),
                ("cos_high", limits.POSITION // LOW_POSITIONS, high),
                ("sin_high", limits.POSITION // LOW_POSITIONS, high),
            )
        )
        cos = g.op("Sub", g.op("Mul", ch, cl), g.op("Mul", sh, sl))
        sin = g.op("Add", g.op("Mul", sh, cl), g.op("Mul", ch, sl))
        return g.op("Unsqueeze", cos, g.const([1, 2])), g.op("Unsqueeze", sin, g.const([1, 2]))

    def rotate(self, x: str, rotation: tuple[str, str] | None) -> str:
        """Rotate the first half of each head of (r,g,s,k)."""
        if rotation is None:
            return x
        g, k = self.g, self.shape.head_dim
        cos, sin = rotation
        first, second, plain = g.ops("Split", x, g.const([k // 4, k // 4, k // 2]), outputs=3, axis=-1)
        turned_first = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
        turned_second = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
        return g.op("Concat", turned_first, turned_second, plain, axis=-1)

    def qkv(self, x: str, name: str, rotation: tuple[str, str] | None) -> tuple[str, str, str]:
        """(r,d) -> q (r,h*k) scaled and rotated, k and v (r,g,1,k)."""
        g, s = self.g, self.shape
        group = s.heads // s.kv_heads
        q = self.linear(x, f"{name}.q", s.width, s.heads * s.head_dim, bias=False)
        q = g.op("Mul", q, g.const(np.float32(s.head_dim**-0.5)))
        q = self.rotate(g.op("Reshape", q, g.const([-1, s.kv_heads, group, s.head_dim])), rotation)
        q = g.op("Reshape", q, g.const([-1, s.heads * s.head_dim]))
        kv = []
        for part in ("k", "v"):
            y = self.linear(x, f"{name}.{part}", s.width, s.kv_heads * s.head_dim, bias=False)
            kv.append(g.op("Reshape", y, g.const([-1, s.kv_heads, 1, s.head_dim])))
        return q, self.rotate(kv[0], rotation), kv[1]

    def ring_checks(self, key: Ring, value: Ring) -> list[str]:
        """Checks (b) that two rings hold numbers; an int8 ring shows what is not one in its scale."""
        return [self.finite_zero(ring[1] if len(ring) > 1 else self.widened(ring)) for ring in (key, value)]

    # health

    def unseen(self, x: str) -> list[str]:
        """Checks (b) of values that a following linear layer would hide: none, a NaN passes through a product."""
        return []

    def finite_zero(self, x: str) -> str:
        """(b,...) -> (b): zero, or NaN where a value of the row is not finite."""
        g = self.g
        flat = g.op("Flatten", g.op("Mul", x, g.const(np.float32(0))), axis=1)
        return g.op("ReduceSum", flat, g.const([1]), keepdims=0)

    def keep(self, active: str, new: str, old: str, rank: int) -> str:
        """``new`` for active rows, ``old`` bit for bit for the others; ``active`` is (b)."""
        g = self.g
        mask = g.op("Unsqueeze", active, g.const(list(range(1, rank)))) if rank > 1 else active
        return g.op("Where", mask, new, old)


LOW_POSITIONS = 4096
"""Rows of the low rotary table; the high one has limits.POSITION / 4096."""

__all__ = ["LOGITS", "LOW_POSITIONS", "PART", "Nodes"]

"""Linear layers with integer weights, in Griffin's own graphs.

What is quantized: every matrix but the embedding table (a row of it is read a step, kept as float16)
and the block-diagonal gates (1 - a^2 forgives nothing). State, recurrence, gates, norms, softmax and
sampler are float32.

* ``dynamic int8``: weights int8, a scale for each output; activations are cut to 8 bits with a scale for
  each *row*, so a row's result depends on nothing but the row. Products of integers are exact in any
  order, so S1 and S3 hold bit for bit. ONNX Runtime's own DynamicQuantizeMatMul takes one scale for the
  whole tensor, and rows then change with their batch mates by a few percent.
* ``int8`` and ``int4``: ``MatMulNBits``, blocks of 128 along the input with a scale each, the head always
  at 8 bits. At accuracy level 4 ONNX Runtime cuts activations to 8 bits block by block; rows are equal
  to rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from ..quantize import BLOCK, blocks_of
from .builder import FLOAT, FLOAT16, GraphBuilder
from .griffin_nodes import PART, Nodes

BLOCKS_INT8, BLOCKS_INT4, DYNAMIC_INT8 = TensorProto.INT8, TensorProto.INT4, TensorProto.UINT8
"""Values of a graph builder's ``stored`` beside the float types."""
HEAD_BITS = 8
ACCURACY_LEVEL = 4
"""MatMulNBits: 8-bit activations. Level 0 multiplies in float32, three times slower (docs/precision.md)."""
ZERO_POINT = 128
"""Activations are unsigned: on x86 a signed pair has no kernel and runs 70 times slower."""


@dataclass(frozen=True)
class QuantizedNodes(Nodes):
    """What both formats share: the float16 embedding, gathered before it is widened."""

    def embed(self, tokens: str) -> str:
        """tokens (r) -> (r,d), scaled."""
        return self.embed_narrow(tokens, FLOAT16)

    def unseen(self, x: str) -> list[str]:
        """Cutting activations to integers turns a NaN into a number, so it is looked for before."""
        return [self.finite_zero(x)]

    def matrix(self, name: str, rows: int, columns: int) -> str:
        """A (rows, columns) weight that stays float32: the gates."""
        return self.vector(name, rows, columns)

    def raw_matrix(self, name: str, *sizes: int) -> str:
        """See :meth:`matrix`."""
        return self.vector(name, *sizes)


def bits_of(stored: int) -> int:
    """Bits of a number in blocks, but for the head's."""
    return 4 if stored == BLOCKS_INT4 else 8


def packed_blocks(g: GraphBuilder, weight: str, fan_in: int, fan_out: int, bits: int) -> tuple[str, str]:
    """Numbers and scales of a matrix in blocks (:mod:`..quantize`)."""
    count = blocks_of(fan_in)
    return (
        g.packed(PART, f"{weight}.q", (fan_out, count, BLOCK * bits // 8), TensorProto.UINT8),
        g.packed(PART, f"{weight}.s", (fan_out, count), FLOAT),
    )


@dataclass(frozen=True)
class BlockNodes(QuantizedNodes):
    """Weight-only integers in blocks."""

    def product(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """See :class:`Nodes`."""
        return self._blocks(x, f"{name}.weight", fan_in, fan_out, bits_of(self.stored), name)

    def unembed(self, x: str, value: str) -> str:
        """See :class:`Nodes`."""
        return self._blocks(x, "head", self.shape.width, self.shape.vocab, HEAD_BITS, value)

    def _blocks(self, x: str, weight: str, fan_in: int, fan_out: int, bits: int, value: str) -> str:
        g = self.g
        g.custom_domains["com.microsoft"] = 1
        return g.op(
            "MatMulNBits",
            x,
            *packed_blocks(g, weight, fan_in, fan_out, bits),
            domain="com.microsoft",
            name=value,
            K=fan_in,
            N=fan_out,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )


@dataclass(frozen=True)
class DynamicNodes(QuantizedNodes):
    """int8 weights, activations cut to 8 bits row by row."""

    cut: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Numbers and scale of the activations that were already cut: layers that read the same share them."""

    def product(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """See :class:`Nodes`."""
        return self._integers(x, f"{name}.weight", fan_in, fan_out, name)

    def unembed(self, x: str, value: str) -> str:
        """See :class:`Nodes`."""
        return self._integers(x, "head", self.shape.width, self.shape.vocab, value)

    def _integers(self, x: str, weight: str, fan_in: int, fan_out: int, value: str) -> str:
        g = self.g
        numbers, scale = self._cut(x)
        columns = g.packed(PART, f"{weight}.q", (fan_in, fan_out), TensorProto.INT8)
        sums = g.op("MatMulInteger", numbers, columns, g.const(np.uint8(ZERO_POINT)))
        rows = g.op("Mul", g.op("Cast", sums, to=FLOAT), scale)
        return g.op("Mul", rows, g.packed(PART, f"{weight}.s", (fan_out,), FLOAT), name=value)

    def _cut(self, x: str) -> tuple[str, str]:
        """x (r, fan_in) -> unsigned 8-bit numbers around 128 and a scale (r,1)."""
        if x not in self.cut:
            g = self.g
            largest = g.op("ReduceMax", g.op("Abs", x), g.const([1]), keepdims=1)
            # A row of zeros still needs a scale to be divided by.
            scale = g.op(
                "Mul", g.op("Max", largest, g.const(np.float32(1e-30))), g.const(np.float32(1 / 127))
            )
            number = g.op("Add", g.op("Round", g.op("Div", x, scale)), g.const(np.float32(ZERO_POINT)))
            self.cut[x] = (g.op("Cast", number, to=TensorProto.UINT8), scale)
        return self.cut[x]


def nodes_class(stored: int) -> type[Nodes]:
    """The nodes for a storage type."""
    if stored in (BLOCKS_INT8, BLOCKS_INT4):
        return BlockNodes
    return DynamicNodes if stored == DYNAMIC_INT8 else Nodes


__all__ = [
    "BLOCKS_INT4",
    "BLOCKS_INT8",
    "DYNAMIC_INT8",
    "BlockNodes",
    "DynamicNodes",
    "nodes_class",
]

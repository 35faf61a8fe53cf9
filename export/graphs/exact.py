"""Reductions whose bits do not depend on where in memory a row lies.

ONNX Runtime CPU sums a row with vector instructions from the first aligned address on, so the order of
additions, and with it the last bit, depends on the row's offset unless every row is a multiple of four
numbers long; its elementwise Log treats the last few numbers of a buffer apart. These helpers keep rows
aligned and buffers whole, which is what S1-S6 stand on (tests/engines/test_operator_probe.py).
"""

from __future__ import annotations

import numpy as np

from .builder import GraphBuilder

ALIGNED = 4
"""Numbers in one vector of ONNX Runtime's reductions."""
VECTOR = 16
"""Numbers in the widest vector of its elementwise functions (AVX-512)."""


def row_sum(g: GraphBuilder, x: str, width: int) -> str:
    """Sum over the last axis, of size ``width``, of (..., width) -> (..., 1)."""
    missing = -width % ALIGNED
    if missing:
        x = g.op("Pad", x, g.const([0, missing]), g.const(np.float32(0)), g.const([-1]))
    return g.op("ReduceSum", x, g.const([-1]), keepdims=1)


def row_mean(g: GraphBuilder, x: str, width: int) -> str:
    """Mean over the last axis, of size ``width``, of (..., width) -> (..., 1)."""
    return g.op("Mul", row_sum(g, x, width), g.const(np.float32(1 / width)))


def row_log(g: GraphBuilder, x: str) -> str:
    """Natural logarithm of (r,1) -> (r,1), through rows of one whole vector."""
    spread = g.op("Log", g.op("Mul", x, g.const(np.ones((1, VECTOR), np.float32))))
    return g.op("Slice", spread, g.const([0]), g.const([1]), g.const([1]))

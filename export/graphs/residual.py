"""Residual vector quantization as nodes: the codebook table (q c, latent) has level l's code k in row l c + k."""

from __future__ import annotations

import numpy as np

from .builder import GraphBuilder


def residual_codes(g: GraphBuilder, left: str, books: str, levels: int, codes: int) -> str:
    """left (b,f,latent) -> codes (b,q,f): at each level the nearest code of what the levels before left over."""
    chosen: list[str] = []
    for level in range(levels):
        with g.scope(f"level{level}"):
            where = g.const([level * codes]), g.const([(level + 1) * codes]), g.const([0])
            book = g.op("Slice", books, *where)
            length = g.op("ReduceSum", g.op("Mul", book, book), g.const([1]), keepdims=0)
            product = g.op("MatMul", left, g.op("Transpose", book, perm=[1, 0]))
            distance = g.op("Sub", length, g.op("Mul", product, g.const(np.float32(2))))
            code = g.op("ArgMin", distance, axis=-1, keepdims=0)
            chosen.append(g.op("Unsqueeze", code, g.const([1])))
            if level + 1 < levels:
                left = g.op("Sub", left, g.op("Gather", book, code))
    return g.op("Concat", *chosen, axis=1) if len(chosen) > 1 else chosen[0]


def summed_codes(g: GraphBuilder, given: str, books: str, levels: int, codes: int) -> str:
    """Codes (b,q,f) -> the sum of their vectors (b,f,latent), coarse to fine."""
    total = ""
    for level in range(levels):
        row = g.op("Add", g.op("Gather", given, g.const(level), axis=1), g.const(level * codes))
        vector = g.op("Gather", books, row)
        total = g.op("Add", total, vector) if level else vector
    return total

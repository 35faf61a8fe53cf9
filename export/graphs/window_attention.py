"""Window attention within a radius, as graph nodes: blocks of queries against the keys near them and the prompt.

A block of 100 queries meets the keys of 300 frames and of the prompt, where attention over a whole window of 30 s
would meet 1 650. What this costs is mostly memory: so heads go one after another, and keys are gathered by index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speechssm.bundle.shapes import AcousticShape

from .builder import GraphBuilder

LARGEST = np.finfo(np.float32).max
"""No score is higher."""
FLOOR = np.float32(-40)
"""Lowest score of a key, beside the best of the prompt's: a weight below 1e-17 that is no denormal number."""
BLOCK = 100
"""Most queries of one block of window attention; every bucket is a multiple of it."""


@dataclass(frozen=True)
class Reach:
    """Attention within ``radius`` frames: a block of queries against the keys within reach of any of them.

    ``frames`` is [f] and need not be a multiple of a block; N blocks, r = block + 2 radius keys each. Shared by
    all layers: ``near`` (N,r) is the frame of each key, one inside the window where there is none; ``heard``
    (N, p + r) the same into prompt and window; ``cap`` (N,block,r) is the highest score a key
    may have: any where it is a frame of the window at most ``radius`` away, else none.
    """

    g: GraphBuilder
    shape: AcousticShape
    frames: str
    block: int
    missing: str
    near: str
    heard: str
    cap: str

    @staticmethod
    def of(g: GraphBuilder, shape: AcousticShape, frames: str, radius: int) -> Reach:
        """From ``frames`` [f]."""
        block = min(radius, BLOCK)
        size = g.const([block])
        blocks = g.op("Div", g.op("Add", frames, g.const([block - 1])), size)
        missing = g.op("Sub", g.op("Mul", blocks, size), frames)
        first = g.op("Squeeze", blocks, g.const([0]))
        first = g.op("Range", g.const(np.int64(0)), first, g.const(np.int64(1)))
        starts = g.op("Unsqueeze", g.op("Mul", first, size), g.const([1]))
        reach = block + 2 * radius
        key = g.op("Add", starts, g.const(np.arange(reach) - radius))  # (N,r), the frame of each key
        real = g.op("And", g.op("GreaterOrEqual", key, g.const(np.int64(0))), g.op("Less", key, frames))
        away = np.arange(reach) - np.arange(block)[:, None]
        close = g.op(
            "And", g.op("Unsqueeze", real, g.const([1])), g.const((away >= 0) & (away <= 2 * radius))
        )
        cap = g.op("Where", close, g.const(LARGEST), g.const(-LARGEST))
        near = g.op("Where", real, key, g.const(np.int64(0)))
        prompt = shape.prompt_frames
        told = g.op("Expand", g.const(np.arange(prompt)), g.op("Concat", blocks, g.const([prompt]), axis=0))
        heard = g.op("Concat", told, g.op("Add", near, g.const(np.int64(prompt))), axis=1)
        return Reach(g, shape, frames, block, missing, near, heard, cap)

    def attend(self, q: str, turned_q: str, told_k: str, turned_k: str, v: str) -> str:
        """As ``_whole`` of the acoustic graph, one head after another: the scores of one stay near the processor."""
        g, s = self.g, self.shape
        near_k = g.op("Gather", turned_k, self.near, axis=2)
        near_v = g.op("Gather", v, self.heard, axis=2)
        given = (self._whole_blocks(q), self._whole_blocks(turned_q), told_k, near_k, near_v)
        if s.heads == 1:
            heads = [given]
        else:
            apart = (g.ops("Split", one, outputs=s.heads, axis=1, num_outputs=s.heads) for one in given)
            heads = list(zip(*apart, strict=True))
        mixed = [self._head(*head) for head in heads]
        y = mixed[0] if s.heads == 1 else g.op("Concat", *mixed, axis=1)
        y = g.op("Reshape", y, g.const([0, 0, -1, s.head_dim]))
        return g.op("Slice", y, g.const([0]), self.frames, g.const([2]))

    def _head(self, q: str, turned_q: str, told_k: str, near_k: str, near_v: str) -> str:
        """One head: (b,1,N,block,k).

        Queries plain and turned (b,1,N block,k), keys (b,1,k,p) and (b,1,N,r,k), values (b,1,N,p+r,k).
        """
        g, s = self.g, self.shape
        told = g.op("Reshape", g.op("MatMul", q, told_k), g.const([0, 0, -1, self.block, s.prompt_frames]))
        queries = g.op("Reshape", turned_q, g.const([0, 0, -1, self.block, s.head_dim]))
        keys = g.op("Transpose", near_k, perm=[0, 1, 2, 4, 3])
        local = g.op("Min", g.op("MatMul", queries, keys), self.cap)
        # The exponential of a score far below its row's best is a denormal number, which made Softmax five
        # times as slow. This floor keeps it normal, and still too small to change any float32 sum.
        floor = g.op("Add", g.op("ReduceMax", told, g.const([-1])), g.const(FLOOR))
        scores = g.op("Concat", told, g.op("Max", local, floor), axis=-1)
        return g.op("MatMul", g.op("Softmax", scores, axis=-1), near_v)

    def _whole_blocks(self, x: str) -> str:
        """(b,h,f,k) with as many frames of zeros behind as the last block lacks."""
        g = self.g
        return g.op("Pad", x, g.op("Concat", g.const([0] * 6), self.missing, g.const([0]), axis=0))

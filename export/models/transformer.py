"""The Transformer baseline: a Griffin whose every temporal block is attention over all that was said.

Same width, depth, MLP, norms, embedding, sampler and graphs as the Griffin it is compared with, so that
what differs is the temporal block and its cache: multi-query (one key/value head) or multi-head
attention, a cache of fixed capacity or one that grows.
"""

from __future__ import annotations

from typing import Literal

from speechssm.bundle.shapes import LMShape
from speechssm.errors import ExportError

Attention = Literal["mqa", "mha"]
BLOCK = 256
"""Slots by which a growing cache is enlarged: 10 seconds of speech."""


def transformer_shape(
    griffin: LMShape, attention: Attention = "mqa", *, capacity: int | None = None, block: int = BLOCK
) -> LMShape:
    """The baseline of ``griffin``.

    ``capacity`` is the number of tokens a fixed cache holds; past it the oldest are forgotten, as no
    other way keeps memory fixed. Without it the cache grows by ``block`` slots. Raises ExportError when
    either is less than 1.
    """
    slots = block if capacity is None else capacity
    if slots < 1:
        raise ExportError(f"a cache of {slots} tokens holds nothing: give at least 1")
    return griffin.model_copy(
        update={
            "blocks": ("attention",) * griffin.layers,
            "kv_heads": 1 if attention == "mqa" else griffin.heads,
            "window": slots,
            "cache": "grow" if capacity is None else "ring",
            # Positions have to come from somewhere once no recurrence gives them.
            "rope": "half" if griffin.head_dim % 4 == 0 else griffin.rope,
        }
    )


def at_capacity(shape: LMShape, tokens: int) -> LMShape:
    """``shape`` with a fixed cache that holds ``tokens`` in whole blocks: what a growing cache amounts to."""
    if shape.cache == "ring":
        return shape
    blocks = -(-tokens // shape.window)
    return shape.model_copy(update={"window": blocks * shape.window, "cache": "ring"})

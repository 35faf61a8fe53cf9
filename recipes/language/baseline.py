"""The language model's yardstick of its own size: a Transformer that attends to the whole segment.

Same width, depth, MLP and embedding, trained on the same batches with the same settings; only the temporal
blocks differ. Its weights are those of the exported baseline (``export/models/transformer.py``); for training the
attention over a whole segment is one fused call instead of blocks of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape
from speechssm.export.models.griffin import Griffin, LocalAttention
from speechssm.export.models.transformer import transformer_shape

from .. import places


class WholeAttention(LocalAttention):
    """Causal attention from position 0 on over at most w + 1 positions."""

    def forward(
        self, x: Tensor, position: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(b,t,d) at ``position`` 0 (b) -> (b,t,d); the rings are handed back unwritten.

        Raises ValueError for more positions than the window holds, where the oldest would have to be left out.
        """
        if x.shape[1] > self.shape.window + 1:
            raise ValueError(f"{x.shape[1]} positions do not fit a window of {self.shape.window}")
        q, k, v = self.project(x, position[:, None] + torch.arange(x.shape[1], device=x.device))
        heads = [z.transpose(1, 2) for z in (q.flatten(2, 3), k, v)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out, key, value


def model(shape: LMShape) -> Griffin:
    """A model of ``shape`` to train: the Griffin, or the Transformer where no block is recurrent."""
    made = Griffin(shape)
    if "recurrent" not in shape.blocks:
        for layer in made.layers:
            layer.temporal = WholeAttention(shape)
    return made


def run(device: str, s: dict[str, Any]) -> dict[str, Any]:
    """Train Griffin and Transformer for ``compared_steps`` each and judge both; resumable like the voice's run."""
    from . import judge, train

    griffin = train.shape_of(s)
    shapes = {"griffin": griffin, "transformer": transformer_shape(griffin, capacity=s["segment_tokens"])}
    short = {**s, "steps": s["compared_steps"]}
    figures: dict[str, Any] = {}
    for kind, shape in shapes.items():
        name = f"language-{kind}"
        train.run(device, short, shape, name=name)
        figures[kind] = judge.run(short, shape, name=name)
    places.write_json(train.folder() / "compared.json", figures)
    return figures

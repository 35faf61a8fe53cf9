"""Hugging Face's RecurrentGemma layout to this project's training layout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from speechssm.bundle.shapes import LMShape
from speechssm.errors import ExportError

Array = npt.NDArray[np.float32]

_RECURRENT = {
    "linear_x.weight": "linear_x.weight",
    "linear_x.bias": "linear_x.bias",
    "linear_y.weight": "linear_y.weight",
    "linear_y.bias": "linear_y.bias",
    "linear_out.weight": "linear_out.weight",
    "linear_out.bias": "linear_out.bias",
    "conv_bias": "conv_1d.bias",
    "lru.decay": "rg_lru.recurrent_param",
    "lru.input_gate.weight": "rg_lru.input_gate_weight",
    "lru.input_gate.bias": "rg_lru.input_gate_bias",
    "lru.recurrence_gate.weight": "rg_lru.recurrent_gate_weight",
    "lru.recurrence_gate.bias": "rg_lru.recurrent_gate_bias",
}
_ATTENTION = {
    "q.weight": "q_proj.weight",
    "k.weight": "k_proj.weight",
    "v.weight": "v_proj.weight",
    "out.weight": "o_proj.weight",
    "out.bias": "o_proj.bias",
}


def griffin_parameters(tensors: Mapping[str, Array], shape: LMShape) -> dict[str, Array]:
    """Parameters of :class:`speechssm.export.models.griffin.Griffin` from Hugging Face's names.

    A ``lm_head.weight`` is read when the shape's head is untied, and may repeat the embedding when it
    is tied. Raises ExportError naming the tensor that is missing or left over.
    """
    left = dict(tensors)

    def take(name: str) -> Array:
        if name not in left:
            raise ExportError(f"the checkpoint has no tensor {name}: it is incomplete or of another layout")
        return left.pop(name)

    out = {"embed": take("model.embed_tokens.weight"), "final_norm.scale": take("model.final_norm.weight")}
    head = left.pop("lm_head.weight", None)
    if not shape.tied_head:
        if head is None:
            raise ExportError(
                "the checkpoint has no tensor lm_head.weight, but its head is not tied to the embedding"
            )
        out["head"] = head
    elif head is not None and not np.array_equal(head, out["embed"]):
        raise ExportError(
            "lm_head.weight differs from the embedding, but the configuration says they are tied"
        )
    for i, block in enumerate(shape.blocks):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        out[f"{ours}.temporal_norm.scale"] = take(f"{theirs}.temporal_pre_norm.weight")
        out[f"{ours}.channel_norm.scale"] = take(f"{theirs}.channel_pre_norm.weight")
        for a, b in (_RECURRENT if block == "recurrent" else _ATTENTION).items():
            out[f"{ours}.temporal.{a}"] = take(f"{theirs}.temporal_block.{b}")
        if block == "recurrent":
            weight = take(f"{theirs}.temporal_block.conv_1d.weight")
            out[f"{ours}.temporal.conv_weight"] = np.ascontiguousarray(weight[:, 0].T)
        for part in ("gate", "up", "down"):
            for kind in ("weight", "bias"):
                out[f"{ours}.mlp.{part}.{kind}"] = take(f"{theirs}.mlp_block.{part}_proj.{kind}")
    if left:
        raise ExportError(f"the checkpoint has a tensor {sorted(left)[0]} that this layout does not know")
    return out

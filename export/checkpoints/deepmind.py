"""Google DeepMind's RecurrentGemma layout (PyTorch names) to this project's training layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from speechssm.bundle.shapes import LMShape
from speechssm.errors import ExportError

Array = npt.NDArray[np.float32]


def griffin_parameters(tensors: Mapping[str, Array], shape: LMShape) -> dict[str, Array]:
    """Parameters of :class:`speechssm.export.models.griffin.Griffin` from DeepMind's names.

    Raises ExportError naming the tensor that is missing or left over.
    """
    left = dict(tensors)

    def take(name: str) -> Array:
        if name not in left:
            raise ExportError(f"the checkpoint has no tensor {name}: it is incomplete or of another layout")
        return left.pop(name)

    out = {"embed": take("embedder.input_embedding")}
    for i, block in enumerate(shape.blocks):
        ours, theirs = f"layers.{i}", f"blocks.{i}"
        out[f"{ours}.temporal_norm.scale"] = take(f"{theirs}.temporal_pre_norm.scale")
        out[f"{ours}.channel_norm.scale"] = take(f"{theirs}.channel_pre_norm.scale")
        if block == "recurrent":
            _recurrent(out, take, f"{ours}.temporal", f"{theirs}.recurrent_block")
        else:
            for a, b in (("q", "proj_q"), ("k", "proj_k"), ("v", "proj_v"), ("out", "proj_final")):
                out[f"{ours}.temporal.{a}.weight"] = take(f"{theirs}.attention_block.{b}.weight")
            out[f"{ours}.temporal.out.bias"] = take(f"{theirs}.attention_block.proj_final.bias")
        weight, bias = take(f"{theirs}.mlp_block.ffw_up.w"), take(f"{theirs}.mlp_block.ffw_up.b")
        for j, part in enumerate(("gate", "up")):
            out[f"{ours}.mlp.{part}.weight"] = np.ascontiguousarray(weight[j].T)
            out[f"{ours}.mlp.{part}.bias"] = bias[j].reshape(-1)
        out[f"{ours}.mlp.down.weight"] = take(f"{theirs}.mlp_block.ffw_down.weight")
        out[f"{ours}.mlp.down.bias"] = take(f"{theirs}.mlp_block.ffw_down.bias")
    out["final_norm.scale"] = take("final_norm.scale")
    if left:
        raise ExportError(f"the checkpoint has a tensor {sorted(left)[0]} that this layout does not know")
    return out


def _recurrent(out: dict[str, Array], take: Callable[[str], Array], ours: str, theirs: str) -> None:
    for part in ("linear_x", "linear_y", "linear_out"):
        out[f"{ours}.{part}.weight"] = take(f"{theirs}.{part}.weight")
        out[f"{ours}.{part}.bias"] = take(f"{theirs}.{part}.bias")
    out[f"{ours}.conv_weight"] = take(f"{theirs}.conv_1d.w")
    out[f"{ours}.conv_bias"] = take(f"{theirs}.conv_1d.b")
    out[f"{ours}.lru.decay"] = take(f"{theirs}.rg_lru.a_param")
    for a, b in (("input_gate", "input_gate"), ("recurrence_gate", "a_gate")):
        out[f"{ours}.lru.{a}.weight"] = take(f"{theirs}.rg_lru.{b}.w")
        out[f"{ours}.lru.{a}.bias"] = take(f"{theirs}.rg_lru.{b}.b")

"""Google DeepMind's RecurrentGemma layout (PyTorch names), whose shape is read off its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from pydantic import ValidationError

from speechssm.bundle import limits
from speechssm.bundle.shapes import Block, LMShape
from speechssm.errors import ExportError

from ..lazy import LazyArrays
from .layout import Layout, Take, Tensors, parameter_shapes, shape_of, take_all

WINDOW = 2048
"""Window of every released model; the tensors do not tell it."""
EMBEDDING = "embedder.input_embedding"


def shape_from_tensors(tensors: Tensors, window: int = WINDOW) -> LMShape:
    """The shape that the tensors imply. Raises ExportError naming the tensor that is missing."""

    def size(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            raise ExportError(f"the checkpoint has no tensor {name}: it is incomplete or of another layout")
        found = shape_of(tensors, name)
        if len(found) != rank or 0 in found:
            raise ExportError(f"tensor {name} has shape {list(found)}, expected {rank} dimensions above 0")
        return found

    vocab, width = size(EMBEDDING, 2)
    numbers = {int(m[1]) for name in tensors if (m := re.match(r"blocks\.([0-9]{1,9})\.", name))}
    if not numbers:
        raise ExportError("the checkpoint has no tensor blocks.0.temporal_pre_norm.scale: it has no layers")
    if max(numbers) >= limits.LAYERS:
        raise ExportError(f"the checkpoint names layer {max(numbers)}: at most {limits.LAYERS} are read")
    blocks: list[Block] = []
    for i in range(max(numbers) + 1):
        attends = f"blocks.{i}.attention_block.proj_q.weight" in tensors
        blocks.append("attention" if attends else "recurrent")
    if "recurrent" not in blocks:
        raise ExportError("the checkpoint has no recurrent_block: it is not a Griffin")
    heads = size(f"blocks.{blocks.index('recurrent')}.recurrent_block.rg_lru.input_gate.w", 3)[0]
    lru_width = size(f"blocks.{blocks.index('recurrent')}.recurrent_block.linear_x.weight", 2)[0]
    head_dim = width // heads
    if "attention" in blocks:
        head_dim = size(f"blocks.{blocks.index('attention')}.attention_block.proj_k.weight", 2)[0]
    mlp_width = size("blocks.0.mlp_block.ffw_up.w", 3)[2]
    try:
        return LMShape(
            vocab=vocab,
            width=width,
            lru_width=lru_width,
            heads=heads,
            kv_heads=1,
            head_dim=head_dim,
            window=window,
            mlp_width=mlp_width,
            blocks=tuple(blocks),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the shape"
        raise ExportError(f"the checkpoint's tensors are of no model: {where}: {first['msg']}") from error


def layout(shape: LMShape) -> Layout:
    """Where each parameter lies."""
    shapes = parameter_shapes(shape)
    out: dict[str, Take] = {}

    def same(ours: str, theirs: str) -> None:
        out[ours] = Take(theirs, shapes[ours])

    same("embed", EMBEDDING)
    for i, block in enumerate(shape.blocks):
        ours, theirs = f"layers.{i}", f"blocks.{i}"
        for norm in ("temporal", "channel"):
            same(f"{ours}.{norm}_norm.scale", f"{theirs}.{norm}_pre_norm.scale")
        if block == "recurrent":
            _recurrent(same, f"{ours}.temporal", f"{theirs}.recurrent_block")
        else:
            for a, b in (("q", "proj_q"), ("k", "proj_k"), ("v", "proj_v"), ("out", "proj_final")):
                same(f"{ours}.temporal.{a}.weight", f"{theirs}.attention_block.{b}.weight")
            same(f"{ours}.temporal.out.bias", f"{theirs}.attention_block.proj_final.bias")
        d, m = shape.width, shape.mlp_width
        for part, convert, flat in (("gate", _gate, _gate_bias), ("up", _up, _up_bias)):
            out[f"{ours}.mlp.{part}.weight"] = Take(f"{theirs}.mlp_block.ffw_up.w", (2, d, m), convert)
            out[f"{ours}.mlp.{part}.bias"] = Take(f"{theirs}.mlp_block.ffw_up.b", (2, 1, 1, m), flat)
        for kind in ("weight", "bias"):
            same(f"{ours}.mlp.down.{kind}", f"{theirs}.mlp_block.ffw_down.{kind}")
    same("final_norm.scale", "final_norm.scale")
    return out


def griffin_parameters(tensors: Tensors, shape: LMShape) -> LazyArrays:
    """Parameters of :class:`speechssm.export.models.griffin.Griffin` from DeepMind's names.

    Raises ExportError naming the tensor that is missing, left over or of another shape.
    """
    return take_all(tensors, layout(shape))


def _recurrent(same: Callable[[str, str], None], ours: str, theirs: str) -> None:
    for part in ("linear_x", "linear_y", "linear_out"):
        for kind in ("weight", "bias"):
            same(f"{ours}.{part}.{kind}", f"{theirs}.{part}.{kind}")
    same(f"{ours}.conv_weight", f"{theirs}.conv_1d.w")
    same(f"{ours}.conv_bias", f"{theirs}.conv_1d.b")
    same(f"{ours}.lru.decay", f"{theirs}.rg_lru.a_param")
    for a, b in (("input_gate", "input_gate"), ("recurrence_gate", "a_gate")):
        same(f"{ours}.lru.{a}.weight", f"{theirs}.rg_lru.{b}.w")
        same(f"{ours}.lru.{a}.bias", f"{theirs}.rg_lru.{b}.b")


def _gate(weight: np.ndarray) -> np.ndarray:
    """(2,d,m) -> (m,d): the first half gates."""
    return np.ascontiguousarray(weight[0].T)


def _up(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight[1].T)


def _gate_bias(bias: np.ndarray) -> np.ndarray:
    flat: np.ndarray = bias[0].reshape(-1)
    return flat


def _up_bias(bias: np.ndarray) -> np.ndarray:
    flat: np.ndarray = bias[1].reshape(-1)
    return flat

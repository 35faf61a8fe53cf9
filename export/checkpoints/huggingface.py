"""Hugging Face's RecurrentGemma layout: configuration to shape, tensor names to this project's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from speechssm.bundle import limits
from speechssm.bundle.shapes import Block, LMShape
from speechssm.errors import ExportError

from ..lazy import LazyArrays
from ..models.griffin import CONV_WIDTH
from .layout import Layout, Take, Tensors, parameter_shapes, take_all

MODEL_TYPE = "recurrent_gemma"
Activation = Literal["gelu_tanh", "silu", "gelu"]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}
_BLOCKS: dict[str, Block] = {"recurrent": "recurrent", "attention": "attention"}
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


def shape_from_config(config: Mapping[str, Any]) -> LMShape:
    """The shape that a ``config.json`` describes.

    ``intermediate_size`` is twice the MLP's width there. Raises ExportError naming the key that is
    missing, malformed, or asks for something the graphs do not do.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise ExportError(
            f"config.json is of model_type {config.get('model_type')!r}, expected {MODEL_TYPE!r}: "
            "only RecurrentGemma checkpoints are read in this layout"
        )
    _refuse_unsupported(config)
    heads, width, layers = (
        _whole(config, k) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    )
    pattern = config.get("block_types") or ["recurrent", "recurrent", "attention"]
    if not isinstance(pattern, list) or not all(isinstance(b, str) and b in _BLOCKS for b in pattern):
        raise ExportError(f"config.json has block_types {pattern!r}: expected a list of {sorted(_BLOCKS)}")
    rope = _rope(config)
    intermediate = _whole(config, "intermediate_size")
    if intermediate % 2:
        raise ExportError(f"config.json has intermediate_size {intermediate}: expected twice the MLP's width")
    try:
        return LMShape(
            vocab=_whole(config, "vocab_size"),
            width=width,
            lru_width=_whole(config, "lru_width") if config.get("lru_width") is not None else width,
            heads=heads,
            kv_heads=_whole(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads,
            head_dim=_whole(config, "head_dim") if config.get("head_dim") else width // heads,
            window=_whole(config, "attention_window_size"),
            mlp_width=intermediate // 2,
            blocks=tuple(_BLOCKS[pattern[i % len(pattern)]] for i in range(layers)),
            rope="half",
            rope_base=float(rope.get("rope_theta", 10_000.0)),
            soft_cap=None if config.get("logits_soft_cap") is None else float(config["logits_soft_cap"]),
            tied_head=bool(config.get("tie_word_embeddings", True)),
            activation=_ACTIVATIONS[str(config.get("hidden_activation", "gelu_pytorch_tanh"))],
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ExportError(
            f"config.json describes no model: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from error
    except (ValueError, TypeError, OverflowError) as error:  # float() of what is none
        raise ExportError(f"config.json describes no model: {error}") from error


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_activation", "gelu_pytorch_tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ExportError(
            f"config.json has hidden_activation {activation!r}, which is not supported: "
            f"expected one of {', '.join(_ACTIVATIONS)}"
        )
    if config.get("conv1d_width", CONV_WIDTH) != CONV_WIDTH:
        raise ExportError(
            f"config.json has conv1d_width {config['conv1d_width']}: only {CONV_WIDTH} is supported"
        )
    if config.get("attention_bias"):
        raise ExportError(
            "config.json has attention_bias true: query, key and value biases are not supported"
        )
    partial = _rope(config).get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5))
    if partial != 0.5:
        raise ExportError(
            f"config.json has partial_rotary_factor {partial}: only 0.5, half of a head, is supported"
        )
    kind = _rope(config).get("rope_type", "default")
    if kind != "default":
        raise ExportError(f"config.json has rope_type {kind!r}: scaled rotary embeddings are not supported")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary settings; older files keep them at the top level."""
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        return rope
    return {"rope_theta": config.get("rope_theta", 10_000.0)}


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    most = limits.LAYERS if key == "num_hidden_layers" else limits.SIZE
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ExportError(f"config.json has {key} {value!r}: expected a whole number from 1 to {most}")
    return value


def layout(shape: LMShape) -> Layout:
    """Where each parameter lies."""
    shapes = parameter_shapes(shape)

    def same(ours: str, theirs: str) -> Take:
        return Take(theirs, shapes[ours])

    out = {
        "embed": same("embed", "model.embed_tokens.weight"),
        "final_norm.scale": same("final_norm.scale", "model.final_norm.weight"),
    }
    if not shape.tied_head:
        out["head"] = same("head", "lm_head.weight")
    for i, block in enumerate(shape.blocks):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for norm in ("temporal", "channel"):
            name = f"{ours}.{norm}_norm.scale"
            out[name] = same(name, f"{theirs}.{norm}_pre_norm.weight")
        for a, b in (_RECURRENT if block == "recurrent" else _ATTENTION).items():
            name = f"{ours}.temporal.{a}"
            out[name] = same(name, f"{theirs}.temporal_block.{b}")
        if block == "recurrent":
            out[f"{ours}.temporal.conv_weight"] = Take(
                f"{theirs}.temporal_block.conv_1d.weight", (shape.lru_width, 1, CONV_WIDTH), _conv
            )
        for part in ("gate", "up", "down"):
            for kind in ("weight", "bias"):
                name = f"{ours}.mlp.{part}.{kind}"
                out[name] = same(name, f"{theirs}.mlp_block.{part}_proj.{kind}")
    return out


def griffin_parameters(tensors: Tensors, shape: LMShape) -> LazyArrays:
    """Parameters of :class:`speechssm.export.models.griffin.Griffin` from Hugging Face's names.

    A ``lm_head.weight`` is read when the shape's head is untied, and may repeat the embedding when it
    is tied. Raises ExportError naming the tensor that is missing, left over or of another shape.
    """
    if "lm_head.weight" not in tensors:
        if not shape.tied_head:
            raise ExportError(
                "the checkpoint has no tensor lm_head.weight, but its head is not tied to the embedding"
            )
    elif shape.tied_head and not np.array_equal(
        tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    ):
        raise ExportError(
            "lm_head.weight differs from model.embed_tokens.weight, but the configuration says they are tied"
        )
    return take_all(tensors, layout(shape), known=frozenset({"lm_head.weight"}))


def _conv(weight: np.ndarray) -> np.ndarray:
    """(e,1,4) -> (4,e)."""
    return np.ascontiguousarray(weight[:, 0].T)

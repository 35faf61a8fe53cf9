"""From the reference model's parameters to the arrays the LM graphs read."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from speechssm.bundle import limits

from ..models.griffin import CONV_WIDTH, Griffin, LocalAttention, RecurrentBlock, ResidualBlock
from .griffin_nodes import LOW_POSITIONS

Weights = dict[str, np.ndarray]


def lm_weights(model: Griffin) -> Weights:
    """Float32 arrays by graph name. Linear weights are (in, out); norms hold 1 + scale."""
    shape = model.shape
    out: Weights = {"embed": _array(model.embed)}
    if model.head is not None:
        out["head"] = _array(model.head)
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, ResidualBlock)
        name = f"L{i:02d}"
        out[f"{name}.temporal_norm"] = _array(layer.temporal_norm.scale) + np.float32(1)
        out[f"{name}.channel_norm"] = _array(layer.channel_norm.scale) + np.float32(1)
        if isinstance(layer.temporal, RecurrentBlock):
            out.update(_recurrent(layer.temporal, name))
        else:
            assert isinstance(layer.temporal, LocalAttention)
            for part in ("q", "k", "v", "out"):
                out.update(_linear(getattr(layer.temporal, part), f"{name}.{part}"))
        for part in ("gate", "up", "down"):
            out.update(_linear(getattr(layer.mlp, part), f"{name}.mlp.{part}"))
    out["final_norm"] = _array(model.final_norm.scale) + np.float32(1)
    if shape.rope == "half" and "attention" in shape.blocks:
        out.update(rope_tables(shape.head_dim, shape.rope_base))
    return out


def rope_tables(head_dim: int, base: float) -> Weights:
    """Cosines and sines of the low and the high part of a position, made in float64."""
    frequencies = base ** (-2.0 * np.arange(head_dim // 4) / (head_dim // 2))
    low = np.arange(LOW_POSITIONS)[:, None] * frequencies
    high = LOW_POSITIONS * np.arange(limits.POSITION // LOW_POSITIONS)[:, None] * frequencies
    tables = {"cos_low": np.cos(low), "sin_low": np.sin(low), "cos_high": np.cos(high), "sin_high": np.sin(high)}
    return {f"rope.{name}": table.astype(np.float32) for name, table in tables.items()}


def _recurrent(block: RecurrentBlock, name: str) -> Weights:
    out: Weights = {}
    for part in ("linear_x", "linear_y", "linear_out"):
        out.update(_linear(getattr(block, part), f"{name}.{part}"))
    for j in range(CONV_WIDTH):
        out[f"{name}.conv.{j}"] = _array(block.conv_weight[j])
    out[f"{name}.conv.bias"] = _array(block.conv_bias)
    weights = [_array(m.weight) for m in (block.lru.input_gate, block.lru.recurrence_gate)]
    for j, pair in enumerate(zip(*weights, strict=True)):
        out[f"{name}.lru.gates.{j}"] = np.concatenate(pair, 1)
    biases = [_array(m.bias) for m in (block.lru.input_gate, block.lru.recurrence_gate)]
    out[f"{name}.lru.gates.bias"] = np.concatenate(biases, 1).reshape(-1)
    out[f"{name}.lru.log_decay"] = _array(-8.0 * F.softplus(block.lru.decay.double()))
    return out


def _linear(layer: torch.nn.Linear, name: str) -> Weights:
    out = {f"{name}.weight": np.ascontiguousarray(_array(layer.weight).T)}
    if layer.bias is not None:
        out[f"{name}.bias"] = _array(layer.bias)
    return out


def _array(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().to(torch.float32).cpu().numpy()
    return array

"""Griffin against other people's implementations and against a float64 dense model of our own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.export.checkpoints import deepmind, huggingface
from speechssm.export.models.griffin import Griffin, LocalAttention, RecurrentBlock, rotate_half, zero_state
from tests.doubles.lm import shaken

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
"""Largest logit difference in float32 that the project accepts."""


def load(name: str) -> tuple[dict[str, np.ndarray], torch.Tensor, np.ndarray]:
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        parameters = {k.removeprefix("param:"): file[k] for k in file.files if k.startswith("param:")}
        return parameters, torch.from_numpy(file["tokens"]), file["logits"]


def built(shape: LMShape, parameters: dict[str, np.ndarray]) -> Griffin:
    model = Griffin(shape).eval()
    model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in parameters.items()})
    return model


def stepwise(model: Griffin, tokens: torch.Tensor) -> torch.Tensor:
    state = zero_state(model.shape, len(tokens), next(model.parameters()).dtype)
    logits = []
    for t in range(tokens.shape[1]):
        out, state = model.step(tokens[:, t], state)
        logits.append(out)
    return torch.stack(logits, 1)


@torch.no_grad()
@pytest.mark.parametrize("way", ["scan", "steps"])
def test_equals_deepmind_over_four_windows(way: str) -> None:
    parameters, tokens, logits = load("deepmind_mqa.npz")
    shape = LMShape(
        vocab=48, width=32, lru_width=40, heads=4, kv_heads=1, head_dim=8, window=16, mlp_width=56,
        blocks=griffin_blocks(5),
    )  # fmt: skip
    model = built(shape, deepmind.griffin_parameters(parameters, shape))
    assert tokens.shape[1] > 4 * shape.window
    ours = model(tokens)[0] if way == "scan" else stepwise(model, tokens)
    assert np.abs(ours.numpy() - logits).max() < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("way", ["scan", "steps"])
def test_equals_huggingface_with_two_kv_heads(way: str) -> None:
    parameters, tokens, logits = load("huggingface_gqa.npz")
    shape = LMShape(
        vocab=48, width=32, lru_width=40, heads=4, kv_heads=2, head_dim=8, window=64, mlp_width=56,
        blocks=griffin_blocks(5),
    )  # fmt: skip
    model = built(shape, huggingface.griffin_parameters(parameters, shape))
    assert tokens.shape[1] < shape.window - 1
    ours = model(tokens)[0] if way == "scan" else stepwise(model, tokens)
    assert np.abs(ours.numpy() - logits).max() < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("rope", ["half", "none"])
@pytest.mark.parametrize(("kv_heads", "window"), [(1, 5), (2, 16), (4, 7)])
def test_s10_many_windows_equal_the_dense_masked_model(rope: str, kv_heads: int, window: int) -> None:
    """S10: past the ring many times over, in float64, with a mask written as the definition reads."""
    shape = LMShape(
        vocab=50, width=24, lru_width=36, heads=4, kv_heads=kv_heads, head_dim=12, window=window, mlp_width=30,
        blocks=griffin_blocks(6), rope=rope,
    )  # fmt: skip
    model = shaken(shape, 5).double()
    tokens = torch.randint(0, shape.vocab, (2, 9 * window + 3))
    reference = dense_griffin(model, tokens)
    for ours in (model(tokens)[0], stepwise(model, tokens)):
        assert (ours - reference).abs().max() < 1e-9
    assert np.abs(model.float()(tokens)[0].numpy() - reference.numpy()).max() < TOLERANCE


def dense_griffin(model: Griffin, tokens: torch.Tensor) -> torch.Tensor:
    """The equations with nothing clever: a loop for the recurrence, one (t,t) mask for the attention."""
    shape = model.shape
    t = tokens.shape[1]
    x = model.embed[tokens] * shape.embedding_scale
    times = torch.arange(t)
    distance = times[:, None] - times
    mask = (distance >= 0) & (distance <= shape.window)
    for layer in model.layers:
        y = layer.temporal_norm(x)
        block = layer.temporal
        if isinstance(block, RecurrentBlock):
            gate = F.gelu(block.linear_y(y), approximate="tanh")
            u = block.linear_x(y)
            padded = F.pad(u, (0, 0, 3, 0))
            u = sum(padded[:, j : j + t] * block.conv_weight[j] for j in range(4)) + block.conv_bias
            lru, h, states = block.lru, torch.zeros_like(u[:, 0]), []
            for s in range(t):
                blocks = u[:, s].view(len(u), shape.heads, -1)
                i, r = (
                    torch.sigmoid(torch.einsum("bhi,hij->bhj", blocks, m.weight) + m.bias).flatten(1)
                    for m in (lru.input_gate, lru.recurrence_gate)
                )
                a = torch.exp(-8 * r * torch.log1p(torch.exp(lru.decay)))
                h = i * u[:, s] if s == 0 else a * h + torch.sqrt(1 - a**2) * i * u[:, s]
                states.append(h)
            y = block.linear_out(torch.stack(states, 1) * gate)
        else:
            assert isinstance(block, LocalAttention)
            q = block.q(y).view(len(y), t, shape.heads, shape.head_dim)
            k, v = (m(y).view(len(y), t, shape.kv_heads, shape.head_dim) for m in (block.k, block.v))
            k, v = (z.repeat_interleave(shape.heads // shape.kv_heads, 2) for z in (k, v))
            if shape.rope == "half":
                q, k = (rotate_half(z, times[None, :, None], shape.rope_base) for z in (q, k))
            scores = torch.einsum("bqhk,bshk->bhqs", q, k) / math.sqrt(shape.head_dim)
            weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
            y = block.out(torch.einsum("bhqs,bshk->bqhk", weights, v).flatten(2))
        x = x + y
        x = x + layer.mlp(layer.channel_norm(x))
    logits = model.final_norm(x) @ model.embed.T
    return shape.soft_cap * torch.tanh(logits / shape.soft_cap)

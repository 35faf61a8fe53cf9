"""The Transformer baseline: same graphs and report as Griffin, a cache that is fixed or grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.exporter import export_models, export_preset
from speechssm.export.graphs.lm import build_lm_step
from speechssm.export.models.griffin import LocalAttention, rotate_half, zero_state
from speechssm.export.models.transformer import Attention, at_capacity, transformer_shape
from tests.doubles.lm import TINY, State

STEPS = 40


def export(folder: Path, shape: LMShape, seed: int, steps: int = STEPS) -> dict[str, OrtGraph]:
    manifest = export_models(
        "baseline",
        {"lm": shape},
        {"lm": seeded_griffin(shape, seed)},
        folder,
        about="",
        rollout=steps,
        threads=1,
    )
    assert manifest.parity["passed"]
    assert manifest.parity["chunked_bit_exact"]
    assert manifest.parity["rows_bit_exact"]
    return {
        name: OrtGraph(name, folder / entry.file, entry, OrtOptions(threads=1))
        for name, entry in manifest.graphs.items()
    }


def zeros(shape: LMShape, rows: int, slots: int) -> State:
    graph_shape = at_capacity(shape, slots) if shape.cache == "grow" else shape
    return {k: v.numpy() for k, v in zero_state(graph_shape, rows).items()}


def step(graph: OrtGraph, token: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray, State]:
    rows = len(token)
    inputs = {
        "token": token,
        "active": np.ones(rows, bool),
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32),
        "uniform": np.full(rows, 0.5, np.float32),
        **{f"in_{k}": v for k, v in state.items()},
    }
    logprob, health, *new = graph.call(inputs, ["logprob", "health", *(f"out_{k}" for k in state)])
    return logprob, health, dict(zip(state, new, strict=True))


@pytest.mark.parametrize("attention", ["mqa", "mha"])
@pytest.mark.parametrize("capacity", [64, None])
def test_parity_of_every_variant(tmp_path: Path, attention: Attention, capacity: int | None) -> None:
    shape = transformer_shape(TINY, attention, capacity=capacity, block=8)
    assert (shape.width, shape.layers, shape.mlp_width) == (TINY.width, TINY.layers, TINY.mlp_width)
    assert shape.kv_heads == (1 if attention == "mqa" else TINY.heads)
    export(tmp_path / "out", shape, 1)


@pytest.mark.parametrize("capacity", [12, None])
def test_parity_of_heads_that_share_keys_in_groups(tmp_path: Path, capacity: int | None) -> None:
    """Two key/value heads for four queries; a fixed cache wraps."""
    shape = transformer_shape(TINY, "mqa", capacity=capacity, block=8)
    export(tmp_path / "out", shape.model_copy(update={"heads": 4, "kv_heads": 2}), 3)


def test_a_growing_cache_equals_a_fixed_one_while_the_host_enlarges_it(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    seed, block = int(rng.integers(1 << 30)), 8
    growing = transformer_shape(TINY, "mqa", block=block)
    fixed = transformer_shape(TINY, "mqa", capacity=STEPS)
    graphs = export(tmp_path / "grow", growing, seed), export(tmp_path / "fix", fixed, seed)
    tokens = rng.integers(0, TINY.vocab, (3, STEPS))
    a, b = zeros(growing, 3, block), zeros(fixed, 3, STEPS)
    for t in range(STEPS):
        if t and t % block == 0:
            # What a host does: a block of anything after the slots that are filled.
            more = {k: np.full((3, block, *v.shape[2:]), 1e9, np.float32) for k, v in a.items() if v.ndim > 1}
            a = {k: np.concatenate([v, more[k]], 1) if k in more else v for k, v in a.items()}
        first, health, a = step(graphs[0]["lm_step"], tokens[:, t], a)
        second, _, b = step(graphs[1]["lm_step"], tokens[:, t], b)
        assert np.isfinite(health).all()
        assert np.abs(first - second).max() < 1e-5
    assert a["L00_key"].shape[1] == STEPS
    for name, value in b.items():
        assert np.abs(a[name] - value).max() < 1e-5


def test_a_full_cache_is_seen_by_the_watchdog(tmp_path: Path, rng: np.random.Generator) -> None:
    shape = transformer_shape(TINY, "mha", block=4)
    graph = export(tmp_path / "out", shape, 2, 12)
    state = zeros(shape, 2, 4)
    state["position"][1] = 2
    for t in range(4):
        _, health, state = step(graph["lm_step"], rng.integers(0, TINY.vocab, 2), state)
        assert np.isnan(health).tolist() == [False, t >= 2]
    state["position"][:] = [4, 1]
    tokens, lengths = rng.integers(0, TINY.vocab, (2, 2)), np.array([1, 2])
    inputs = {"tokens": tokens, "lengths": lengths, **{f"in_{k}": v for k, v in state.items()}}
    assert np.isnan(graph["lm_chunk"].call(inputs, ["health"])[0]).tolist() == [True, False]


@pytest.mark.parametrize("capacity", [64, None])
def test_no_cache_is_copied_to_put_its_heads_first(capacity: int | None) -> None:
    """The only transposition is of the last two axes of keys, which the engine folds into the product."""
    builder = build_lm_step(transformer_shape(TINY, "mha", capacity=capacity))
    moved = [list(n.attribute[0].ints) for n in builder.model().graph.node if n.op_type == "Transpose"]
    assert moved == [[0, 2, 1]] * TINY.layers


@torch.no_grad()
@pytest.mark.parametrize("attention", ["mqa", "mha"])
def test_reference_is_full_causal_attention(attention: Attention, rng: np.random.Generator) -> None:
    """Against PyTorch's own attention."""
    shape = at_capacity(transformer_shape(TINY, attention, block=8), STEPS)
    torch.manual_seed(int(rng.integers(1 << 30)))
    layer = LocalAttention(shape).double()
    x = torch.randn(2, STEPS, shape.width, dtype=torch.float64)
    ring = torch.zeros(2, shape.window, shape.kv_heads, shape.head_dim, dtype=torch.float64)
    ours, _, _ = layer(x, torch.zeros(2, dtype=torch.int64), ring, ring)
    at = torch.arange(STEPS)[None, :, None].expand(2, -1, -1)
    q, k, v = (getattr(layer, part)(x).unflatten(-1, (-1, shape.head_dim)) for part in ("q", "k", "v"))
    q, k = rotate_half(q, at, shape.rope_base), rotate_half(k, at, shape.rope_base)
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    wanted = layer.out(y.transpose(1, 2).flatten(2))
    assert (ours - wanted).abs().max() < 1e-9


def test_shapes() -> None:
    with pytest.raises(ExportError, match="holds nothing"):
        transformer_shape(TINY, capacity=0)
    with pytest.raises(ValueError, match="every block is attention"):
        LMShape.model_validate({**TINY.model_dump(), "cache": "grow"})
    shape = transformer_shape(TINY, "mha", block=16)
    assert at_capacity(shape, 17).window == 32
    assert at_capacity(shape, 16).window == 16


def test_presets_have_baselines(tmp_path: Path) -> None:
    manifest = export_preset("tiny", tmp_path / "a", rollout=9, threads=1, transformer="mqa")
    assert manifest.name == "tiny-mqa-seed0"
    assert manifest.lm.shape.cache == "grow"
    assert manifest.speaks
    manifest = export_preset("tiny", tmp_path / "b", rollout=9, threads=1, transformer="mha", capacity=20)
    assert manifest.lm.shape.window == 20
    assert manifest.speaks
    with pytest.raises(ExportError, match="add --transformer"):
        export_preset("tiny", tmp_path / "c", capacity=20)

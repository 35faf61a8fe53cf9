"""The cost model counts what the models and the state really have."""

from __future__ import annotations

import pytest

from speechssm.bundle import state_bytes
from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.export.models.griffin import Griffin, lm_state
from speechssm.export.models.transformer import at_capacity, transformer_shape
from speechssm.export.presets import PRESETS
from speechssm.perf.capacity import Machine, capacity, step_seconds

SHAPES = {
    "tiny": PRESETS["tiny"].lm,
    "demo": PRESETS["demo"].lm,
    "untied": PRESETS["tiny"].lm.model_copy(update={"tied_head": False}),
    "odd": LMShape(
        vocab=41, width=36, lru_width=57, heads=3, kv_heads=1, head_dim=12, window=7, mlp_width=50,
        blocks=griffin_blocks(7),
    ),
    "transformer, mqa": transformer_shape(PRESETS["tiny"].lm, "mqa", capacity=32),
    "transformer, mha": transformer_shape(PRESETS["tiny"].lm, "mha", capacity=32),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name: str) -> None:
    shape = SHAPES[name]
    model = Griffin(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    small = ("bias", "scale", "decay", "conv_weight", "conv_bias")
    matrices = sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.endswith(small) and "embed" not in n and n != "head"
    )
    assert shape.matrix_parameters == matrices + shape.vocab * shape.width


@pytest.mark.parametrize("name", SHAPES)
def test_session_bytes_are_those_of_the_state(name: str) -> None:
    shape = SHAPES[name]
    assert shape.session_bytes(10**6) == state_bytes(lm_state(shape))


def test_a_growing_cache_is_counted_in_whole_blocks() -> None:
    shape = transformer_shape(PRESETS["tiny"].lm, "mha", block=64)
    for tokens in (1, 64, 65, 1000):
        assert shape.session_bytes(tokens) == state_bytes(lm_state(at_capacity(shape, tokens)))


def test_paper_sizes() -> None:
    """facts/paper.md 2.1 and 2.5: parameters with 32 768 audio tokens, bytes of a session with bf16 rings."""
    two, nine = PRESETS["2b"].lm, PRESETS["9b"].lm
    assert round(two.parameters / 1e9, 3) == 2.111
    assert round(nine.parameters / 1e9, 3) == 7.666
    ring = two.window * two.kv_bytes_per_token(2)
    assert ring == 8 * 2_097_152
    mqa = transformer_shape(two, "mqa")
    assert mqa.kv_bytes_per_token(2) == two.layers * 2 * 256 * 2


def test_capacity_respects_the_limit_that_binds() -> None:
    shape = PRESETS["2b"].lm
    machine = Machine(memory_bytes=80 << 30, read_bytes_per_s=3e12, flops_per_s=4e14)
    found = capacity(shape, machine, weight_item_bytes=2, ring_item_bytes=2, tokens=16_384)
    weights = 2 * shape.parameters
    assert weights + found.fit * shape.session_bytes(16_384, 2) <= machine.memory_bytes
    assert weights + (found.fit + 1) * shape.session_bytes(16_384, 2) > machine.memory_bytes
    at = lambda rows: step_seconds(shape, machine, rows, 16_384, weight_item_bytes=2, ring_item_bytes=2)  # noqa: E731
    assert (
        at(found.real_time).total_s <= 0.04 < at(found.real_time + 1).total_s or found.real_time == found.fit
    )
    assert found.limit in ("memory", "bandwidth", "compute")


def test_a_machine_too_small_fits_nobody() -> None:
    machine = Machine(memory_bytes=1 << 30, read_bytes_per_s=1e10, flops_per_s=1e11)
    found = capacity(PRESETS["2b"].lm, machine, weight_item_bytes=4, ring_item_bytes=4, tokens=1000)
    assert (found.fit, found.real_time, found.limit) == (0, 0, "memory")

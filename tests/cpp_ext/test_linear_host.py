"""Linear layers on a processor against float64: odd shapes, storages, rows alone and together, damage, strides."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from speechssm.export.quantize import BLOCK, through
from tests.cpp_ext.linear_native import ACTIVATIONS, STORAGES, Layer, call_of, random_layer, run_linear
from tests.cpp_ext.lru_native import AVX2, AVX512, SCALAR

SHAPES = (
    (1, 1, 1),
    (1, 128, 7),
    (3, 200, 65),
    (5, 256, 130),
    (9, 131, 70),
    (2, 16, 3),
    (4, 1000, 64),
    (70, 40, 33),
)
"""Rows, inputs, outputs."""


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(host, rng, shape, storage, activation):
    layer = random_layer(rng, *shape)
    if storage in ("int8", "int4"):
        draw_away_from_ties(layer, rng)
    y = run_linear(host, layer, storage, activation)
    want = run_linear(host, layer, storage, activation, version=2)
    error = np.abs(y - want)
    size = max(1.0, float(np.abs(want).max()))  # what is added up is of size 1
    assert error.max() <= (3e-6 if storage in ("int8", "int4") else 1e-6) * size


def draw_away_from_ties(layer: Layer, rng: np.random.Generator) -> None:
    """Redraw rows with a number that float32 and float64 may cut to 8 bits on different sides."""
    while True:
        n = layer.x.astype(np.float64)
        n = n / np.sqrt((n * n).mean(1, keepdims=True) + 1e-6) * layer.norm
        cut = np.pad(n, ((0, 0), (0, -n.shape[1] % BLOCK))).reshape(len(n), -1, BLOCK)
        steps = cut * 127 / np.abs(cut).max(-1, keepdims=True)
        near = (np.abs(steps - np.floor(steps) - 0.5) < 1e-4).any((1, 2))
        if not near.any():
            return
        layer.x[near] = 3 * rng.standard_normal((int(near.sum()), layer.x.shape[1]))


def test_the_reference_is_the_layer(host, rng):
    """By numpy alone, in float64: the plain loops are not their own witness."""
    layer = random_layer(rng, 3, 50, 20)
    n = layer.x.astype(np.float64)
    n = n / np.sqrt((n * n).mean(1, keepdims=True) + 1e-6) * layer.norm
    p, u = n @ layer.weight.T + layer.bias, n @ layer.times.T + layer.times_bias
    want = layer.residual + p / (1 + np.exp(-p)) * u
    for version in (1, 2):
        np.testing.assert_allclose(
            run_linear(host, layer, "float32", "silu", version=version), want, atol=2e-5
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_are_the_numbers_they_stand_for(host, rng, bits):
    """One input at a time: the matrix read back column by column, rounded like the largest of its numbers."""
    layer = random_layer(rng, 1, 150, 9, gated=False)
    matrix = through(layer.weight, bits)
    for i in (0, 1, 127, 128, 149):
        x = np.zeros((1, 150), np.float32)
        x[0, i] = 1
        y = run_linear(host, Layer(x, layer.weight), f"int{bits}")
        np.testing.assert_allclose(y[0], matrix[:, i], rtol=1e-5, atol=5e-7 * np.abs(matrix).max())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_is_the_same_among_any_mates(host, rng, storage, gated):
    """S3 for the operator: one row streams the matrix, several share tiles, and no bit tells."""
    layer = random_layer(rng, 11, 300, 150, gated=gated)
    together = run_linear(host, layer, storage, "gelu_tanh")
    for rows in ([0], [10], [3, 4], [1, 5, 7], list(range(4)), list(range(6))):
        assert run_linear(host, layer.rows(rows), storage, "gelu_tanh").tobytes() == together[rows].tobytes()


@pytest.mark.parametrize("isa", [SCALAR, AVX2, AVX512])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(1, 200, 70), (7, 131, 33)], ids=str)
def test_every_instruction_set_gives_the_scalar_bits(host, rng, isa, storage, shape):
    layer = random_layer(rng, *shape)
    host.set_isa(SCALAR)
    want = run_linear(host, layer, storage, "gelu_tanh")
    best = host.set_isa(isa)
    try:
        if best != isa:
            pytest.skip("this processor lacks the instruction set")
        y = run_linear(host, layer, storage, "gelu_tanh")
    finally:
        host.set_isa(AVX512)
    assert y.tobytes() == want.tobytes()


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", STORAGES)
def test_damage_shows_and_stays_in_its_row(host, rng, storage, damage):
    layer = random_layer(rng, 6, 150, 20)
    clean = run_linear(host, layer, storage)
    layer.x[2, 149] = damage
    y = run_linear(host, layer, storage)
    assert not np.isfinite(y[2]).any()
    others = [0, 1, 3, 4, 5]
    assert y[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_may_lie_apart_and_what_is_between_is_not_read(host, rng, storage):
    layer = random_layer(rng, 5, 130, 17)
    assert run_linear(host, layer, storage, stride=9).tobytes() == run_linear(host, layer, storage).tobytes()


def test_rows_of_zeros_and_tiny_numbers(host, rng):
    layer = replace(random_layer(rng, 2, 256, 8, gated=False), norm=None, residual=None)
    layer.x[0] = 0
    layer.x[1] = 1e-38
    for storage in ("int8", "int4"):
        y = run_linear(host, layer, storage)
        np.testing.assert_array_equal(y[0], layer.bias)
        assert np.isfinite(y).all()


def test_bad_calls_are_refused_with_a_reason(host, rng):
    layer = random_layer(rng, 2, 20, 4)

    def status(**changes: object) -> str:
        call, _, _keep = call_of(host, layer, "int8")
        for name, value in changes.items():
            setattr(call, name, value)
        return host.text(host.lib.speechssm_linear_host(ctypes.byref(call), 1))

    assert status() == "ok"
    assert "another speechssm_rglru" in status(struct_bytes=8)
    assert "negative" in status(rows=-1)
    assert "overlap" in status(x_stride=3)
    assert "stored as none" in status(stored=3)
    assert "activation is unknown" in status(activation=9)
    assert "NULL" in status(times_scale=None)
    assert "workspace is smaller" in status(workspace_bytes=7)

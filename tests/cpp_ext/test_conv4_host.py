"""The causal convolution of width 4 on a processor against float64."""

import ml_dtypes
import numpy as np
import pytest

from tests.cpp_ext.lru_reference import conv4


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 33), (2, 3, 17), (3, 2, 8), (40, 3, 21)], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_agrees_with_float64(host, rng, shape, in_place):
    tokens, rows, width = shape
    u = rng.standard_normal(shape).astype(np.float32)
    weight, bias = (
        rng.standard_normal((4, width)).astype(np.float32),
        rng.standard_normal(width).astype(np.float32),
    )
    state = rng.standard_normal((rows + 2, 3, width)).astype(np.float32)
    slots = rng.permutation(rows + 2)[:rows]
    position = rng.integers(-2, 3, rows)
    lengths = rng.integers(0, tokens + 1, rows)
    for b in range(rows):
        u[lengths[b] :, b] = np.nan
    want_y, want_state = conv4(np.nan_to_num(u), weight, bias, state, position, lengths, slots=slots)
    y, out = host.conv4(u, weight, bias, state, position, in_place=in_place, lengths=lengths, slots=slots)
    terms = np.abs(weight).sum(0) * max(np.abs(np.nan_to_num(u)).max(), np.abs(state).max()) + np.abs(bias)
    assert (np.abs(y - want_y) / terms).max() <= 3e-7  # five roundings of at most the sum of the terms
    assert np.array_equal(out[slots], want_state[slots].astype(np.float32))


def test_reset_forgets_a_damaged_state_and_idle_rows_keep_theirs(host, rng):
    u = rng.standard_normal((2, 3, 9)).astype(np.float32)
    weight = rng.standard_normal((4, 9)).astype(np.float32)
    state = np.full((3, 3, 9), np.nan, np.float32)
    y, out = host.conv4(u, weight, None, state, [0, 0, 0], active=[1, 0, 1], lengths=[2, 2, 0])
    assert np.isfinite(y).all()
    assert np.isfinite(out[0]).all()
    assert out[1:].tobytes() == state[1:].tobytes()


def test_chunks_give_the_same_bits(host, rng):
    u = rng.standard_normal((23, 2, 13)).astype(np.float32)
    weight, bias = rng.standard_normal((4, 13)).astype(np.float32), rng.standard_normal(13).astype(np.float32)
    state = rng.standard_normal((2, 3, 13)).astype(np.float32)
    whole_y, whole_state = host.conv4(u, weight, bias, state, [4, 0])
    parts, t = [], 0
    for size in (1, 2, 3, 7, 10):
        y, state = host.conv4(u[t : t + size], weight, bias, state, [4 + t, t])
        parts.append(y)
        t += size
    assert np.concatenate(parts).tobytes() == whole_y.tobytes()
    assert state.tobytes() == whole_state.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_two_byte_state_is_exact(host, rng, dtype):
    u = rng.standard_normal((5, 2, 11)).astype(dtype)
    weight = rng.standard_normal((4, 11)).astype(np.float32)
    _, out = host.conv4(u, weight, None, np.zeros((2, 3, 11), dtype), [9, 9])
    assert np.array_equal(out, u[2:].transpose(1, 0, 2))

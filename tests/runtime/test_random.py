"""Counter-based uniforms: pinned for ever, the same from any place, and uniform."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssm.errors import SettingsError
from speechssm.runtime.random import Stage, acoustic_uniforms, check_seed, uniforms

SEEDS = st.integers(0, 2**64 - 1)


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10 as published (Salmon et al. 2011), in plain integers."""
    c, k, mask = list(counter), list(key), 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & mask, (first >> 64) ^ c[3] ^ k[1], first & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def test_the_reference_gives_the_published_vector() -> None:
    """Known answer of Random123 for a key and counter of zeros."""
    assert philox((0, 0), (0, 0, 0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@given(SEEDS, st.sampled_from(Stage), st.integers(0, 2**60), st.integers(1, 11))
@settings(deadline=None)
def test_numbers_follow_the_definition(seed: int, stage: Stage, index: int, count: int) -> None:
    words = [philox((seed, stage), (i // 4, 0, 0, 0))[i % 4] for i in range(index, index + count)]
    drawn = uniforms(seed, stage, index, count)
    assert drawn.dtype == np.float32
    assert drawn.tolist() == [(word >> 40) / 2**24 for word in words]


@given(SEEDS, st.integers(0, 2**40), st.integers(0, 63), st.integers(1, 3), st.integers(1, 5))
@settings(deadline=None)
def test_acoustic_numbers_follow_the_definition(
    seed: int, start: int, iteration: int, a: int, b: int
) -> None:
    words = [philox((seed, 2), (i // 4, start, iteration, 0))[i % 4] for i in range(a * b)]
    drawn = acoustic_uniforms(seed, start, iteration, (a, b))
    assert drawn.shape == (a, b)
    assert drawn.ravel().tolist() == [(word >> 40) / 2**24 for word in words]


def test_pinned_values() -> None:
    """A stream made by one version is the stream of every version. Never edit these."""
    assert (uniforms(0, Stage.LM, 0, 5) * 2**24).tolist() == [10251047, 14608205, 1031768, 14003599, 13645816]
    assert (uniforms(2**64 - 1, Stage.LM, 24_001, 3) * 2**24).tolist() == [7615731, 10711632, 13564648]
    assert (acoustic_uniforms(7, 650, 15, (2, 2)) * 2**24).tolist() == [
        [10597157, 9577856],
        [12232162, 8488225],
    ]


@given(SEEDS, st.integers(0, 5000), st.integers(1, 600), st.data())
@settings(deadline=None)
def test_any_split_and_any_order_give_the_same(
    seed: int, index: int, count: int, data: st.DataObject
) -> None:
    whole = uniforms(seed, Stage.LM, index, count)
    place = data.draw(st.integers(0, count))
    after = uniforms(seed, Stage.LM, index + place, count - place)
    before = uniforms(seed, Stage.LM, index, place)
    np.testing.assert_array_equal(np.concatenate([before, after]), whole)


def test_streams_differ_by_seed_stage_window_and_iteration() -> None:
    drawn = [
        uniforms(1, Stage.LM, 0, 64),
        uniforms(2, Stage.LM, 0, 64),
        uniforms(1, Stage.ACOUSTIC, 64, 64),
        *(acoustic_uniforms(1, start, i, (64,)) for start in (0, 650) for i in (0, 1)),
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert np.count_nonzero(one == other) < 2


def test_uniform_in_the_open_end() -> None:
    """Kolmogorov-Smirnov at one in a million, over a million numbers; multiples of 2^-24 below one."""
    drawn = np.sort(uniforms(123, Stage.LM, 0, 1_000_000).astype(np.float64))
    assert drawn[0] >= 0
    assert drawn[-1] < 1
    assert np.all(drawn * 2**24 == np.floor(drawn * 2**24))
    distance = np.max(np.abs(drawn - (np.arange(drawn.size) + 0.5) / drawn.size))
    assert distance < 2.7 / np.sqrt(drawn.size)


def test_a_block_for_the_lm_is_cheap() -> None:
    """1024 numbers, once in 41 s of speech: far below a microsecond a step."""
    best = min(_timed() for _ in range(20))
    assert best < 1e-3


def _timed() -> float:
    before = time.perf_counter()
    uniforms(5, Stage.LM, 1024, 1024)
    return time.perf_counter() - before


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "3", None, True, float("nan")])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(SettingsError, match="seed"):
        check_seed(seed)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="seed"):
        uniforms(seed, Stage.LM, 0, 1)  # type: ignore[arg-type]


def test_numpy_integers_are_seeds() -> None:
    assert check_seed(np.uint64(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize(("index", "count"), [(-1, 1), (2**64, 1), (0, -1)])
def test_bad_places_are_refused(index: int, count: int) -> None:
    with pytest.raises(SettingsError):
        uniforms(0, Stage.LM, index, count)
    with pytest.raises(SettingsError):
        acoustic_uniforms(0, -1, 0, (1,))
    with pytest.raises(SettingsError):
        acoustic_uniforms(0, 0, 2**64, (1,))


def test_nothing_is_nothing() -> None:
    assert uniforms(0, Stage.LM, 3, 0).shape == (0,)

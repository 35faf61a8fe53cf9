"""Joins: each frame and sample once (A1), padding never heard (A2), memory bounded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechssm.errors import SessionFailed, SettingsError, SnapshotError
from speechssm.runtime.stitch import CodeStitcher, WaveformJoin, fade_weights
from speechssm.runtime.windows import DEFAULT, WindowCall, WindowSettings, next_call, plan, window_count

POISON = -(2**40)


@st.composite
def geometries(draw: st.DrawFn) -> WindowSettings:
    window = draw(st.one_of(st.integers(1, 24), st.integers(50, 900)))
    return WindowSettings(window, draw(st.integers(0, window - 1)), draw(st.booleans()))


TOTALS = st.lists(st.integers(1, 800), min_size=1, max_size=5)
"""Lengths of a stream that ends and goes on again."""


def acoustic(call: WindowCall, known: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Codes that tell which window made which frame; garbage where nothing may be read from."""
    frames = np.arange(2 * call.bucket) + 2 * call.start
    codes = frames + 10**6 * np.arange(1, len(known) + 1)[:, None]
    codes[:, 2 * (call.end - call.start) :] = POISON
    codes[mask] = POISON
    np.testing.assert_array_equal(known[mask], (frames + 10**6 * np.arange(1, len(known) + 1)[:, None])[mask])
    assert mask.sum() == len(known) * 2 * (call.known_to - call.start)
    assert mask[:, : 2 * (call.known_to - call.start)].all()
    return codes


def stream(
    geometry: WindowSettings, stitcher: CodeStitcher, emitted: int, total: int
) -> list[NDArray[np.int64]]:
    sent = []
    while (call := next_call(geometry, emitted, total, total)) is not None:
        codes = acoustic(call, *stitcher.known(call))
        sent.append(stitcher.push(call, codes))
        codes[:] = POISON  # an engine reuses its output buffer
        assert stitcher.nbytes <= 8 * codes.shape[0] * 2 * geometry.window
        emitted = stitcher.emitted
    return sent


@given(geometries(), TOTALS, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_a1_a2_frames_come_once_in_order_and_never_from_padding(
    geometry: WindowSettings, portions: list[int], levels: int
) -> None:
    stitcher, total, sent = CodeStitcher(geometry, levels), 0, []
    for portion in portions:
        before, total = total, total + min(portion, 4 * geometry.hop + 1)
        sent += stream(geometry, stitcher, before, total)
        # Moving house between two portions changes nothing.
        moved = CodeStitcher(geometry, levels)
        moved.restore(stitcher.snapshot())
        stitcher = moved
    expected = np.arange(2 * total) + 10**6 * np.arange(1, levels + 1)[:, None]
    np.testing.assert_array_equal(np.concatenate(sent, axis=1), expected)


def test_a1_sixteen_minutes_keep_one_window() -> None:
    stitcher = CodeStitcher(DEFAULT, 12)
    sent = stream(DEFAULT, stitcher, 0, 24_000)
    assert len(sent) == window_count(24_000) == 37
    assert sum(codes.shape[1] for codes in sent) == 48_000
    assert stitcher.nbytes <= 12 * 1_500 * 8


def test_a_fork_is_independent() -> None:
    geometry = WindowSettings(ramp=True)
    first = CodeStitcher(geometry, 2)
    stream(geometry, first, 0, 120)
    saved = first.snapshot()
    second = CodeStitcher(geometry, 2)
    second.restore(saved)
    stream(geometry, first, 120, 300)
    saved["codes"][:] = POISON
    tail = stream(geometry, second, 120, 300)
    np.testing.assert_array_equal(np.concatenate(tail, axis=1)[0], np.arange(240, 600) + 10**6)


def calls_of(total: int, geometry: WindowSettings = DEFAULT) -> list[WindowCall]:
    return list(plan(geometry, total))


def test_gaps_overlaps_and_wrong_shapes_are_refused_and_change_nothing() -> None:
    first, second, third = calls_of(2_000)
    stitcher = CodeStitcher(DEFAULT, 3)
    codes = np.zeros((3, 1_500), np.int64)
    with pytest.raises(SessionFailed, match="a gap"):
        stitcher.push(second, codes)
    for wrong in (codes[:2], codes[:, :-1], codes.astype(np.float32), codes[0]):
        with pytest.raises(SessionFailed, match="codes"):
            stitcher.push(first, wrong)
    stitcher.push(first, codes)
    with pytest.raises(SessionFailed, match="an overlap"):
        stitcher.push(first, codes)
    with pytest.raises(SessionFailed, match="a gap"):
        stitcher.known(third)
    assert stitcher.push(second, codes).shape == (3, 1_300)


def test_known_codes_that_are_gone_are_refused() -> None:
    stitcher = CodeStitcher(DEFAULT, 1)
    for call in calls_of(2_000)[:2]:
        stitcher.push(call, np.zeros((1, 1_500), np.int64))
    early = WindowCall(0, 1_400, 1_400, 1_350, 1_400, 1_350, final=False)
    with pytest.raises(SessionFailed, match="are kept"):
        stitcher.known(early)


@pytest.mark.parametrize(
    "damage",
    [
        {"codes": np.zeros((2, 10), np.int64)},
        {"codes": np.zeros((3, 10), np.int64)},
        {"codes": np.zeros((3, 100), np.int32)},
        {"codes": np.zeros((300,), np.int64)},
        {"place": np.array([60, 10], np.int64)},
        {"place": np.array([-5, 45], np.int64)},
        {"place": np.array([0, 2**40], np.int64)},
        {"place": np.array([0.0, 50.0])},
        {"place": np.array([50], np.int64)},
        {"place": None},
        {"codes": None},
    ],
)
def test_a_foreign_snapshot_is_refused_and_changes_nothing(
    damage: dict[str, NDArray[np.int64] | None],
) -> None:
    stitcher = CodeStitcher(DEFAULT, 3)
    stream(DEFAULT, stitcher, 0, 50)
    good = stitcher.snapshot()
    bad = {key: value for key, value in (good | damage).items() if value is not None}
    with pytest.raises(SnapshotError):
        stitcher.restore(bad)
    np.testing.assert_array_equal(stitcher.snapshot()["codes"], good["codes"])
    assert stitcher.emitted == 50


# ---- the waveform join --------------------------------------------------------------------------------


@given(st.integers(0, 5000))
def test_a1_fade_weights_sum_to_exactly_one(fade: int) -> None:
    weight = fade_weights(fade)
    assert weight.shape == (fade,)
    assert np.all(weight + (np.float32(1) - weight) == np.float32(1))
    assert np.all((np.float32(1) - weight).astype(np.float64) == 1 - weight.astype(np.float64))
    assert np.all((weight > 0) & (weight < 1))
    assert np.all(np.diff(weight) >= 0)
    np.testing.assert_allclose(weight, 1 - weight[::-1], atol=2**-23)


def join(
    geometry: WindowSettings, portions: list[int], fade: int, per_token: int, level: object
) -> tuple[NDArray[np.float32], list[WindowCall]]:
    """Play windows that hold ``level(index)`` in real tokens and NaN in padding."""
    joiner, total, sent, calls = WaveformJoin(fade, per_token), 0, [], []
    for portion in portions:
        total += min(portion, 4 * geometry.hop + 1)
        while (call := next_call(geometry, joiner.emitted, total, total)) is not None:
            audio = np.full(call.bucket * per_token, np.nan, np.float32)
            audio[: (call.end - call.start) * per_token] = level(len(calls))  # type: ignore[operator]
            sent.append(joiner.push(call, audio))
            audio[:] = np.nan
            assert len(sent[-1]) == (call.emit_to - call.emit_from) * per_token
            calls.append(call)
    played = np.concatenate(sent)
    assert len(played) == total * per_token
    return played, calls


@given(geometries(), TOTALS, st.integers(0, 100), st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_a1_a2_every_sample_weighs_one_for_any_window_overlap_and_hop(
    geometry: WindowSettings, portions: list[int], fade: int, per_token: int
) -> None:
    """Windows of ones stay ones, to the bit, and padding (NaN here) is never heard."""
    played, _ = join(geometry, portions, fade, per_token, lambda index: 1.0)
    assert np.all(played == np.float32(1))


@given(geometries(), st.integers(1, 3000), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_each_sample_is_between_its_two_windows(geometry: WindowSettings, total: int, fade: int) -> None:
    played, calls = join(geometry, [total], fade, 1, lambda index: index + 1)
    for index, call in enumerate(calls):
        mine = played[call.emit_from : call.emit_to]
        assert np.all((mine >= index) & (mine <= index + 1))
        assert np.all(mine[fade:] == index + 1)
        if index and fade:
            given = min(fade, calls[index - 1].end - call.emit_from, len(mine))
            assert np.all(mine[:given] < index + 1)


def test_the_fade_is_a_line_from_the_earlier_to_the_later_window() -> None:
    played, _ = join(WindowSettings(20, 10), [35], 4, 1, lambda index: float(index))
    np.testing.assert_array_equal(played[15:20], np.float32([0.125, 0.375, 0.625, 0.875, 1.0]))


def test_the_waveform_join_refuses_gaps_and_shapes() -> None:
    first, second, *_ = calls_of(2_000)
    joiner = WaveformJoin()
    audio = np.zeros(480_000, np.float32)
    with pytest.raises(SessionFailed, match="a gap"):
        joiner.push(second, audio)
    for wrong in (audio[:-1], audio.astype(np.float64), audio[None]):
        with pytest.raises(SessionFailed, match="float32"):
            joiner.push(first, wrong)
    joiner.push(first, audio)
    with pytest.raises(SessionFailed, match="an overlap"):
        joiner.push(first, audio)
    with pytest.raises(SettingsError):
        WaveformJoin(-1)
    with pytest.raises(SettingsError):
        WaveformJoin(10, 0)

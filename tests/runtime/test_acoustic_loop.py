"""The acoustic stage's host loop, with a double in place of the graph and with the tiny graph itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS
from speechssm.errors import SettingsError
from speechssm.export.graphs.acoustic import PART, acoustic_weights, build_acoustic, build_acoustic_prompt
from speechssm.export.graphs.builder import GraphBuilder
from speechssm.export.models.acoustic import Acoustic
from speechssm.runtime.acoustic import (
    DEFAULT_SCHEDULE,
    FAST_SCHEDULE,
    AcousticPass,
    AcousticSchedule,
    GraphPass,
    Told,
    Voice,
    WindowDecoder,
    WindowRow,
    decode_windows,
    gumbel,
    left_after,
    most_confident,
)
from speechssm.runtime.random import acoustic_uniforms
from tests.doubles.inline import inline_weights

Rng = np.random.Generator
TINY = ACOUSTIC_PRESETS["tiny"]
LEVELS, PROMPT = TINY.levels, TINY.prompt_tokens


def row(rng: Rng, tokens: int, sent: int = 0, seed: int | None = None) -> WindowRow:
    seed = int(rng.integers(1 << 63)) if seed is None else seed
    return WindowRow(
        voice=Voice(rng.integers(0, 64, PROMPT), rng.integers(0, 32, (LEVELS, 2 * PROMPT))),
        tokens=rng.integers(0, 64, tokens),
        sent=rng.integers(0, 32, (LEVELS, sent)),
        uniforms=partial(acoustic_uniforms, seed, 1300),
    )


class Double:
    """A graph whose answers depend on tokens, level and pass alone; it keeps what it was given."""

    def __init__(self, confidence: np.ndarray | None = None) -> None:
        self.confidence = confidence
        self.given: list[dict[str, Any]] = []
        self.heard: list[tuple[np.ndarray, np.ndarray]] = []

    def listen(self, tokens: np.ndarray, codes: np.ndarray) -> Told:
        self.heard.append((tokens, codes))
        return Told(*[np.zeros((len(tokens), 1), np.float32)] * 3)

    def __call__(
        self,
        told: Told,
        tokens: np.ndarray,
        codes: np.ndarray,
        known: np.ndarray,
        level: int,
        temperature: float,
        noise: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        self.given.append(
            {
                "codes": codes.copy(),
                "known": known.copy(),
                "level": level,
                "temperature": temperature,
                "noise": noise.copy(),
            }
        )
        frames = np.repeat(tokens, 2, axis=1)
        chosen = (frames * 7 + level + len(self.given)) % 32
        confidence = -((frames * 13 + np.arange(frames.shape[1]) * 5) % 97).astype(np.float32)
        if self.confidence is not None:
            confidence = np.broadcast_to(self.confidence, frames.shape).astype(np.float32)
        return np.where(known[:, level], codes[:, level], chosen), confidence


@pytest.fixture(scope="module")
def tiny_graph() -> AcousticPass:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        weights = acoustic_weights(Acoustic(TINY))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1

    class Engine:
        def __init__(self, built: GraphBuilder) -> None:
            model = inline_weights(built, {PART: weights}).SerializeToString()
            self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def call(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
            return list(self.session.run(list(outputs), inputs))

    return GraphPass(Engine(build_acoustic_prompt(TINY)), Engine(build_acoustic(TINY)))  # type: ignore[arg-type]


# the schedule


def test_cosine_schedule_in_every_case() -> None:
    """Falls by one at least while frames remain, never above the cosine, and ends at 0."""
    for iterations in range(1, 41):
        for frames in [*range(200), 1499, 1500]:
            left = left_after(frames, iterations)
            assert len(left) == iterations
            assert left[-1] == 0
            before = frames
            for i, now in enumerate(left, 1):
                assert now == 0 if before <= 1 else 0 <= now < before
                ideal = frames * math.cos(math.pi / 2 * i / iterations)
                assert now <= ideal + 1e-6
                assert now > ideal - 1 - iterations
                before = now


def test_cosine_schedule_of_a_full_window() -> None:
    expected = [1492, 1471, 1435, 1385, 1322, 1247, 1159, 1060, 951, 833, 707, 574, 435, 292, 147, 0]
    assert left_after(1500, 16) == tuple(expected)
    assert left_after(1500, 3) == (1299, 750, 0), "a cosine of one half is one half"
    assert left_after(5, 16) == (4, 3, 2, 1, *[0] * 12)
    assert left_after(0, 2) == (0, 0)


def test_published_schedules() -> None:
    assert DEFAULT_SCHEDULE.passes(8) == 16 + 7
    assert DEFAULT_SCHEDULE.passes(1) == 16
    assert FAST_SCHEDULE.passes(8) == 8
    assert AcousticSchedule(iterations=(4, 2, 1)).passes(8) == 4 + 2 + 6


def test_temperatures_fall_and_the_last_pass_is_greedy() -> None:
    linear = AcousticSchedule(temperature=0.8, choice_temperature=2.0)
    assert [round(linear.temperature_at(i, 5), 6) for i in range(5)] == [0.8, 0.6, 0.4, 0.2, 0.0]
    assert [round(linear.choice_at(i, 5), 6) for i in range(5)] == [1.6, 1.2, 0.8, 0.4, 0.0]
    constant = AcousticSchedule(temperature=0.8, annealing="constant")
    assert [constant.temperature_at(i, 4) for i in range(4)] == [0.8, 0.8, 0.8, 0.0]
    assert linear.temperature_at(0, 1) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": ()},
        {"iterations": (0,)},
        {"iterations": (257,)},
        {"iterations": (2.0,)},
        {"iterations": [16]},
        {"iterations": 16},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"choice_temperature": math.inf},
        {"annealing": "cosine"},
    ],
)
def test_schedule_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        AcousticSchedule(**wrong)


def test_schedule_with_more_levels_than_the_bundle_is_refused(rng: Rng) -> None:
    with pytest.raises(SettingsError, match="4"):
        WindowDecoder(Double(), [row(rng, 3)], AcousticSchedule(iterations=(2, 1, 1, 1, 1, 1)))


# choosing frames


def test_most_confident_takes_the_earlier_of_equals(rng: Rng) -> None:
    confidence = rng.integers(-3, 0, 50).astype(np.float64)
    order = sorted(range(50), key=lambda i: (-confidence[i], i))
    for count in (0, 1, 17, 50):
        assert list(most_confident(confidence, count)) == order[:count]
    assert list(most_confident(np.array([np.nan, -5.0, np.nan, -1.0]), 2)) == [3, 1]


def test_gumbel_is_finite_at_both_ends_and_has_its_mean() -> None:
    ends = gumbel(np.array([0, 1 - 2**-24], np.float32))
    assert np.isfinite(ends).all()
    assert ends[0] < -2 < 15 < ends[1]
    numbers = acoustic_uniforms(5, 0, 0, (200_000,))
    assert gumbel(numbers).mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert gumbel(numbers).std() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


# the loop


def test_levels_go_coarse_to_fine_and_follow_the_cosine(rng: Rng) -> None:
    double, rows = Double(), [row(rng, 20, sent=6), row(rng, 20)]
    codes, failed = decode_windows(double, rows, AcousticSchedule(iterations=(5, 2, 1)))
    assert not failed
    assert [g["level"] for g in double.given] == [0] * 5 + [1] * 2 + [2, 3]
    assert [g["temperature"] > 0 for g in double.given] == [True] * 4 + [False, True, False, False, False]
    for i, frames in enumerate((34, 40)):
        unknown = [int((~g["known"][i, g["level"]]).sum()) for g in double.given]
        assert unknown == [
            frames,
            *left_after(frames, 5)[:-1],
            frames,
            *left_after(frames, 2)[:-1],
            frames,
            frames,
        ]
    for g in double.given:
        assert g["known"][:, : g["level"]].all(), "coarser levels are complete"
        finer = g["known"][:, g["level"] + 1 :]
        assert finer[0, :, :6].all()
        assert not finer[0, :, 6:].any()
    assert all(c.shape == (LEVELS, 40) and c.dtype == np.int64 for c in codes)


def test_known_codes_stay(rng: Rng) -> None:
    rows = [row(rng, 9, sent=n) for n in (0, 1, 11, 18)]
    double = Double()
    codes, _ = decode_windows(double, rows)
    for i, (given, got) in enumerate(zip(rows, codes, strict=True)):
        np.testing.assert_array_equal(got[:, : given.sent.shape[1]], given.sent)
        for g in double.given:
            np.testing.assert_array_equal(g["codes"][i, :, : given.sent.shape[1]], given.sent)


def test_a_window_listens_to_its_prompt_once(rng: Rng) -> None:
    rows, double = [row(rng, 9), row(rng, 9)], Double()
    decode_windows(double, rows)
    ((tokens, codes),) = double.heard
    for i, given in enumerate(rows):
        np.testing.assert_array_equal(tokens[i], given.voice.tokens)
        np.testing.assert_array_equal(codes[i], given.voice.codes)


def test_each_pass_keeps_the_most_confident(rng: Rng) -> None:
    """Without noise, no frame that stays unknown was more confident than one that was taken."""
    frames = 2 * 15
    double = Double(confidence=rng.permutation(frames).astype(np.float32))
    decode_windows(double, [row(rng, 15)], AcousticSchedule(iterations=(6, 1), choice_temperature=0.0))
    assert double.confidence is not None
    for before, after in zip(double.given[:5], double.given[1:6], strict=True):
        taken = after["known"][0, 0] & ~before["known"][0, 0]
        left = ~after["known"][0, 0]
        assert double.confidence[taken].min() > double.confidence[left].max()


def test_equal_confidence_takes_frames_in_order(rng: Rng) -> None:
    double = Double(confidence=np.zeros(1))
    decode_windows(double, [row(rng, 15)], AcousticSchedule(iterations=(6, 1), choice_temperature=0.0))
    for g in double.given[:6]:
        known = g["known"][0, 0]
        assert not known[known.sum() :].any()


def test_gumbel_noise_changes_the_order_and_only_that(rng: Rng) -> None:
    double = Double(confidence=np.zeros(1))
    decode_windows(double, [row(rng, 15)], AcousticSchedule(iterations=(6, 1), choice_temperature=1.0))
    known = double.given[3]["known"][0, 0]
    assert known[known.sum() :].any()
    assert (~known).sum() == left_after(30, 6)[2]


def test_random_numbers_belong_to_the_pass_and_the_frame(rng: Rng) -> None:
    """The graph's noise is column 0 of the row's numbers for that pass; a greedy pass draws none."""
    asked: list[tuple[int, tuple[int, ...]]] = []
    base = row(rng, 4)

    def uniforms(index: int, shape: tuple[int, ...]) -> np.ndarray:
        asked.append((index, shape))
        return acoustic_uniforms(77, 0, index, shape)

    double = Double()
    rows = [WindowRow(base.voice, base.tokens, base.sent, uniforms)]
    decode_windows(double, rows, AcousticSchedule(iterations=(3, 2, 1)))
    frames = 2 * 4
    assert asked == [(0, (frames, 2)), (1, (frames, 2)), (3, (frames, 2))]
    np.testing.assert_array_equal(double.given[1]["noise"][0], acoustic_uniforms(77, 0, 1, (frames, 2))[:, 0])
    np.testing.assert_array_equal(double.given[3]["noise"][0], acoustic_uniforms(77, 0, 3, (frames, 2))[:, 0])
    assert not double.given[2]["noise"].any()


def test_passes_that_no_row_needs_are_left_out(rng: Rng) -> None:
    """Three unknown frames need three of sixteen passes; the finer levels keep their pass numbers."""
    asked: list[int] = []
    base = row(rng, 10, sent=17)

    def uniforms(index: int, shape: tuple[int, ...]) -> np.ndarray:
        asked.append(index)
        return acoustic_uniforms(3, 0, index, shape)

    double = Double()
    rows = [WindowRow(base.voice, base.tokens, base.sent, uniforms)]
    decode_windows(double, rows, AcousticSchedule(iterations=(16, 16, 1)))
    assert asked == [0, 1, 2, 16, 17, 18]
    assert [g["level"] for g in double.given] == [0, 0, 0, 1, 1, 1, 2, 3]


def test_nothing_to_do_makes_no_call(rng: Rng) -> None:
    double, full = Double(), row(rng, 7, sent=14)
    decoder = WindowDecoder(double, [full], DEFAULT_SCHEDULE)
    assert decoder.done
    decoder.step()
    assert not double.given
    np.testing.assert_array_equal(decoder.result()[0], full.sent)


def test_a_failing_row_is_named_and_its_neighbours_are_not_touched(rng: Rng) -> None:
    rows = [row(rng, 6) for _ in range(3)]
    alone = [decode_windows(Double(), [r])[0][0] for r in rows]

    class Failing(Double):
        def __call__(self, *args: Any) -> tuple[np.ndarray, np.ndarray]:
            codes, confidence = super().__call__(*args)
            if len(self.given) == 4:
                confidence[1] = np.nan
            return codes, confidence

    codes, failed = decode_windows(Failing(), rows)
    assert failed == {1}
    np.testing.assert_array_equal(codes[0], alone[0])
    np.testing.assert_array_equal(codes[2], alone[2])


def test_steps_leave_room_for_other_work(rng: Rng) -> None:
    double = Double()
    decoder = WindowDecoder(double, [row(rng, 8)], DEFAULT_SCHEDULE)
    assert decoder.passes == 16 + LEVELS - 1
    for i in range(decoder.passes):
        assert not decoder.done
        assert len(double.given) == i
        decoder.step()
    assert decoder.done
    assert decoder.known.all()


# the tiny graph


@pytest.mark.parametrize("schedule", [DEFAULT_SCHEDULE, AcousticSchedule((5, 2, 1), 0.7, 3.0, "constant")])
def test_S3_rows_are_the_same_alone_and_batched(
    tiny_graph: AcousticPass, schedule: AcousticSchedule, rng: Rng
) -> None:
    """Five sessions with their own seeds, prompts and codes already sent: bit for bit, in any company."""
    rows = [row(rng, 23, sent=int(n)) for n in rng.permutation([0, 0, 3, 31, 45])]
    together, failed = decode_windows(tiny_graph, rows, schedule)
    assert not failed
    for i, one in enumerate(rows):
        np.testing.assert_array_equal(decode_windows(tiny_graph, [one], schedule)[0][0], together[i])
    backwards, _ = decode_windows(tiny_graph, rows[::-1][1:4], schedule)
    for got, want in zip(backwards, together[::-1][1:4], strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_seed_decides(tiny_graph: AcousticPass, rng: Rng) -> None:
    first = row(rng, 20, seed=8)
    second = WindowRow(first.voice, first.tokens, first.sent, partial(acoustic_uniforms, 9, 1300))
    schedule = AcousticSchedule(annealing="constant")
    (a, b, again), _ = decode_windows(tiny_graph, [first, second, first], schedule)
    np.testing.assert_array_equal(a, again)
    assert (a[0] != b[0]).mean() > 0.1
    assert a.min() >= 0
    assert a.max() < TINY.codes
    assert len(np.unique(a[0])) > 8


def test_fast_is_the_argmax_of_each_level_given_those_above(tiny_graph: AcousticPass, rng: Rng) -> None:
    one = row(rng, 11)
    (got,), _ = decode_windows(tiny_graph, [one], FAST_SCHEDULE)
    told = tiny_graph.listen(one.voice.tokens[None], one.voice.codes[None])
    codes = np.zeros((1, LEVELS, 22), np.int64)
    known = np.zeros(codes.shape, bool)
    for level in range(LEVELS):
        noise = np.zeros((1, 22), np.float32)
        chosen, _ = tiny_graph(told, one.tokens[None], codes, known, level, 0.0, noise)
        codes[:, level], known[:, level] = chosen, True
    np.testing.assert_array_equal(got, codes[0])


def test_a_ramp_keeps_what_was_sent(tiny_graph: AcousticPass, rng: Rng) -> None:
    """The second call of a ramp reads more tokens and takes the first call's codes as they are."""
    long = row(rng, 40)
    short = WindowRow(long.voice, long.tokens[:20], long.sent, long.uniforms)
    (first,), _ = decode_windows(tiny_graph, [short])
    sent = first[:, :20]
    (second,), _ = decode_windows(tiny_graph, [WindowRow(long.voice, long.tokens, sent, long.uniforms)])
    np.testing.assert_array_equal(second[:, :20], sent)
    assert second.shape == (LEVELS, 80)
    unprompted = WindowRow(long.voice, long.tokens, long.sent, long.uniforms)
    assert (decode_windows(tiny_graph, [unprompted])[0][0] != second).any(), "what was sent is heard"


# what is refused


def test_rows_of_other_shapes_are_refused(rng: Rng) -> None:
    good = row(rng, 5)
    voice = good.voice
    wrong = [
        [],
        [good, row(rng, 6)],
        [good, WindowRow(Voice(voice.tokens[1:], voice.codes[:, 2:]), good.tokens, good.sent, good.uniforms)],
        [WindowRow(Voice(voice.tokens, voice.codes[:, 1:]), good.tokens, good.sent, good.uniforms)],
        [WindowRow(voice, good.tokens, np.zeros((LEVELS, 11), np.int64), good.uniforms)],
        [WindowRow(voice, good.tokens, np.zeros((LEVELS - 1, 4), np.int64), good.uniforms)],
    ]
    for rows in wrong:
        with pytest.raises(SettingsError):
            decode_windows(Double(), rows)

"""Sessions end to end on the tiny bundle: lengths, joins, streaming, snapshots, forks, memory."""

from __future__ import annotations

import gc
import itertools
import resource
from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_FRAMES
from speechssm.errors import AudioError, SessionFailed, SettingsError
from speechssm.runtime.acoustic import AcousticSchedule, WindowRow, decode_windows
from speechssm.runtime.model import Model
from speechssm.runtime.random import acoustic_uniforms
from speechssm.runtime.session import Session
from speechssm.runtime.stages import Stages
from speechssm.runtime.windows import WindowSettings, pad_indices, plan

QUICK = AcousticSchedule(iterations=(1,))


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return speechssm.load(tiny_bundle, threads=1)


@pytest.fixture
def voice(rng: np.random.Generator) -> np.ndarray:
    """Two seconds of something that is not silence."""
    return recording(rng, 2.0)


def recording(rng: np.random.Generator, seconds: float) -> np.ndarray:
    n = round(seconds * SAMPLE_RATE_HZ)
    return (0.1 * np.sin(np.arange(n) * rng.uniform(0.02, 0.2)) + 0.05 * rng.standard_normal(n)).astype(
        np.float32
    )


def opened(model: Model, voice: np.ndarray, **settings: object) -> Session:
    settings = {"seed": 1, "schedule": QUICK, "temperature": 3.0, **settings}
    return model.open(voice, rate_hz=SAMPLE_RATE_HZ, **settings)  # type: ignore[arg-type]


def collect(pieces: object) -> np.ndarray:
    return np.concatenate(list(pieces))  # type: ignore[call-overload]


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.04, 1.0, 1.01, 29.98, 30.02, 56.3])
@pytest.mark.parametrize("ramp", [False, True])
def test_length_is_exact_to_the_sample(model: Model, voice: np.ndarray, seconds: float, ramp: bool) -> None:
    with opened(model, voice, ramp=ramp) as session:
        audio = collect(session.stream(seconds))
        assert len(audio) == round(seconds * SAMPLE_RATE_HZ)
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert session.stats.samples == len(audio)
        assert session.stats.first_audio_s is not None


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("tokens", [20, 760, 1433])
def test_a1_streamed_equals_offline(model: Model, voice: np.ndarray, ramp: bool, tokens: int) -> None:
    """A1: a stream equals the tokens, all windows, then one codec pass over all frames, sample for sample."""
    session = opened(model, voice, ramp=ramp)
    audio = collect(session.stream(tokens / 25))

    lm = opened(model, voice, ramp=ramp)
    stream = []
    for _ in range(tokens):
        stream.append(int(lm.lm.step().tokens[0]))
    settings = WindowSettings(ramp=ramp)
    frames = np.zeros((model.stages.levels, tokens * TOKEN_FRAMES), np.int64)
    run = model.stages.acoustic_pass()
    for call in plan(settings, tokens):
        own = stream[call.start : call.end] + [stream[i] for i in pad_indices(call.end, call.pad)]
        known = frames[:, call.start * TOKEN_FRAMES : call.known_to * TOKEN_FRAMES]
        row = WindowRow(
            lm.voice, np.array(own), known, lambda i, s, start=call.start: acoustic_uniforms(1, start, i, s)
        )
        (codes,), failed = decode_windows(run, [row], QUICK)
        assert not failed
        first, stop = ((t - call.start) * TOKEN_FRAMES for t in (call.emit_from, call.emit_to))
        frames[:, call.emit_from * TOKEN_FRAMES : call.emit_to * TOKEN_FRAMES] = codes[:, first:stop]
    state = {f"in_{s.name}": np.zeros((1, *s.shape), s.dtype) for s in model.stages.codec_schema}
    (whole,) = model.stages.graphs("codec_decode").call({"codes": frames[None], **state}, ["audio"])
    assert audio.tobytes() == whole[0].tobytes()


def test_a1_asking_in_pieces_of_the_codec_changes_nothing(model: Model, rng: np.random.Generator) -> None:
    """A1: any chunking of the frames through the codec gives the same samples."""
    codes = rng.integers(0, model.stages.codes, (model.stages.levels, 333))
    whole = collect(model.stages.codec_stream().decode(codes))
    stream = model.stages.codec_stream()
    cuts = [0, *np.sort(rng.choice(np.arange(1, 333), 12, replace=False)).tolist(), 333]
    parts = [collect(stream.decode(codes[:, a:b])) for a, b in itertools.pairwise(cuts)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("tokens", [20, 760])
def test_a2_padding_never_leaks(
    model: Model, voice: np.ndarray, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: what the acoustic stage makes of the padding is dropped: poisoned there, the audio is the same."""
    clean = collect(opened(model, voice).stream(tokens / 25))
    real = Stages.decode_window
    poisoned_frames = 0

    def poisoned(self: Stages, row: WindowRow, schedule: AcousticSchedule) -> np.ndarray:
        nonlocal poisoned_frames
        codes = real(self, row, schedule)
        call = plans.pop(0)
        codes[:, (call.end - call.start) * TOKEN_FRAMES :] = self.codes - 1
        poisoned_frames += call.pad * TOKEN_FRAMES
        return codes

    plans = list(plan(WindowSettings(), tokens))
    monkeypatch.setattr(Stages, "decode_window", poisoned)
    assert collect(opened(model, voice).stream(tokens / 25)).tobytes() == clean.tobytes()
    assert poisoned_frames > 0


def test_one_seed_one_speech(model: Model, voice: np.ndarray) -> None:
    first = collect(opened(model, voice, schedule="default").stream(2))
    assert collect(opened(model, voice, schedule="default").stream(2)).tobytes() == first.tobytes()
    assert collect(opened(model, voice, schedule="default", seed=2).stream(2)).tobytes() != first.tobytes()


def test_sessions_of_one_model_do_not_touch(model: Model, voice: np.ndarray) -> None:
    """Interleaved piece by piece, two sessions sound as each does alone."""
    alone = [collect(opened(model, voice, seed=s).stream(31)) for s in (1, 2)]
    sessions = [opened(model, voice, seed=s) for s in (1, 2)]
    pieces = [[], []]
    for pair in itertools.zip_longest(*(s.stream(31) for s in sessions)):
        for kept, piece in zip(pieces, pair, strict=True):
            if piece is not None:
                kept.append(piece)
    for kept, expected in zip(pieces, alone, strict=True):
        assert np.concatenate(kept).tobytes() == expected.tobytes()


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("pieces", [0, 1, 3, 15])
def test_s6_snapshot_restore_continue_is_identical(
    model: Model, voice: np.ndarray, tmp_path: Path, ramp: bool, pieces: int
) -> None:
    """S6: stopped after any piece, written to a file, restored, resumed: the same samples."""
    whole = collect(opened(model, voice, ramp=ramp).stream(33.3))
    session = opened(model, voice, ramp=ramp)
    stream = session.stream(33.3)
    before = [next(stream) for _ in range(pieces)]
    path = session.snapshot(tmp_path / "s.safetensors")
    after_original = list(stream)
    session.close()
    restored = model.restore(path)
    after = list(restored.resume())
    joined = np.concatenate([*before, *after])
    assert joined.tobytes() == whole.tobytes()
    assert np.concatenate([*before, *after_original]).tobytes() == whole.tobytes()


def test_s6_forks_are_independent(model: Model, voice: np.ndarray) -> None:
    """S6: a fork says what its parent says; with another seed it goes its own way, and nobody notices."""
    session = opened(model, voice)
    stream = session.stream(40)
    before = [next(stream) for _ in range(2)]
    twin, stranger = session.fork(), session.fork(seed=99)
    other = collect(stranger.resume())
    rest = collect(stream)
    assert collect(twin.resume()).tobytes() == rest.tobytes()
    assert other.tobytes() != rest.tobytes()
    whole = collect(opened(model, voice).stream(40))
    assert np.concatenate([*before, rest]).tobytes() == whole.tobytes()
    session.close()
    assert len(collect(twin.stream(1))) == SAMPLE_RATE_HZ


def test_s6_freeze_is_complete(model: Model, voice: np.ndarray) -> None:
    """S6: what is thawed freezes to the same bytes."""
    session = opened(model, voice, ramp=True)
    stream = session.stream(35)
    for _ in range(4):
        next(stream)
    first = session.freeze()
    second = Session.thaw(model.stages, first).freeze()
    assert first.meta == second.meta
    assert {k: v.tobytes() for k, v in first.tensors.items()} == {
        k: v.tobytes() for k, v in second.tensors.items()
    }


def test_a_stream_can_go_on_after_its_end(model: Model, voice: np.ndarray) -> None:
    session = opened(model, voice)
    first = collect(session.stream(1.01))
    second = collect(session.stream(31.5))
    third = collect(session.stream(0.005))
    assert [len(a) for a in (first, second, third)] == [16_160, 504_000, 80]
    assert session.stats.tokens == 813


def test_an_interrupted_stream_can_be_shortened(model: Model, voice: np.ndarray) -> None:
    """Tokens already made are not taken back; the samples given out are exactly those asked for."""
    session = opened(model, voice)
    stream = session.stream(20)
    first = next(stream)
    rest = collect(session.stream(3))
    whole = collect(opened(model, voice).stream(20))
    assert np.concatenate([first, rest]).tobytes() == whole[: len(first) + len(rest)].tobytes()
    assert len(rest) == 3 * SAMPLE_RATE_HZ


def test_an_endless_stream_must_be_meant(model: Model, voice: np.ndarray) -> None:
    session = opened(model, voice, ramp=True)
    with pytest.raises(SettingsError, match="unbounded"):
        session.stream()
    with pytest.raises(SettingsError, match="24 h"):
        session.stream(86_401)
    endless = session.stream(unbounded=True)
    assert sum(len(next(endless)) for _ in range(20)) > 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), -float("inf"), "3", None, True])
def test_absurd_lengths_are_refused(model: Model, voice: np.ndarray, seconds: object) -> None:
    with pytest.raises(SettingsError, match="second"):
        opened(model, voice).stream(seconds)  # type: ignore[arg-type]


def test_a_closed_session_says_so(model: Model, voice: np.ndarray, tmp_path: Path) -> None:
    session = opened(model, voice)
    stream = session.stream(5)
    session.close()
    session.close()
    for use in (lambda: next(stream), lambda: session.snapshot(tmp_path / "x"), session.fork):
        with pytest.raises(SessionFailed, match="closed"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_session_stops_loudly_and_its_neighbours_go_on(model: Model, voice: np.ndarray) -> None:
    sick, well = opened(model, voice), opened(model, voice, seed=2)
    expected = collect(opened(model, voice, seed=2).stream(3))
    sick.lm.state.current["L00_lru"][0, 3] = np.nan
    with pytest.raises(SessionFailed, match="no longer finite"):
        collect(sick.stream(3))
    with pytest.raises(SessionFailed, match="closed"):
        collect(sick.stream(3))
    assert collect(well.stream(3)).tobytes() == expected.tobytes()


def test_another_speaker_changes_the_voice_not_the_words(model: Model, rng: np.random.Generator) -> None:
    prompt = recording(rng, 4)
    mine = opened(model, prompt)
    other = opened(model, prompt, speaker=recording(rng, 1.5), speaker_rate_hz=SAMPLE_RATE_HZ)
    assert other.voice.tokens.shape == mine.voice.tokens.shape
    assert not np.array_equal(other.voice.codes, mine.voice.codes)
    a, b = collect(mine.stream(2)), collect(other.stream(2))
    assert a.tobytes() != b.tobytes()
    assert mine.lm.save(0).token == other.lm.save(0).token


@pytest.mark.parametrize("seconds", [1.0, 2.9, 3.0, 30.0, 30.1, 61.0])
def test_prompts_of_any_length(model: Model, rng: np.random.Generator, seconds: float) -> None:
    prompt = recording(rng, seconds)
    session = opened(model, prompt)
    assert session.position == -(-len(prompt) // 640)
    assert session.voice.tokens.shape == (75,)
    assert session.voice.codes.shape == (model.stages.levels, 150)
    assert len(collect(session.stream(0.5))) == 8000


def test_prompts_that_cannot_be_used(model: Model, rng: np.random.Generator) -> None:
    with pytest.raises(AudioError, match="at least 1 s"):
        opened(model, recording(rng, 0.5))
    with pytest.raises(AudioError):
        opened(model, np.full(32_000, np.nan, np.float32))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def growth(session: Session, minutes: int, after: int) -> tuple[int, int]:
    """Samples of ``minutes``, and how much resident memory grew from minute ``after`` to the end."""
    samples, at = 0, None
    for piece in session.stream(minutes * 60):
        samples += len(piece)
        if at is None and samples >= after * 60 * SAMPLE_RATE_HZ:
            gc.collect()
            at = resident_bytes()
    gc.collect()
    assert at is not None
    return samples, resident_bytes() - at


def test_a3_sixteen_minutes_in_flat_memory(model: Model, rng: np.random.Generator) -> None:
    """A3: resident memory grows less than 8 MiB from minute 2 to minute 16; length exact to the sample."""
    with opened(model, recording(rng, 10), ramp=True) as session:
        samples, grown = growth(session, 16, after=2)
        assert samples == 16 * 60 * SAMPLE_RATE_HZ
        assert session.tokens.kept <= 2 * 750 + 649
        assert session.stitcher.nbytes <= model.stages.levels * 1500 * 8
    assert grown < 8 << 20

"""The acoustic recipe on a small made-up corpus, with seeded tokenizer, codec and voiceprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipes import data, splits
from recipes.acoustic import evaluate, packed, prepare, timing, train, voiceprint
from recipes.acoustic.crops import Crops, Mixture, hide
from recipes.acoustic.prepare import Encoded

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS
from speechssm.bundle.shapes.codec import CODEC_PRESETS
from speechssm.bundle.shapes.tokenizer import TokenizerShape
from speechssm.errors import SpeechSSMError
from speechssm.export.models.acoustic import Acoustic
from speechssm.export.models.codec import Codec
from speechssm.export.models.tokenizer import Tokenizer
from speechssm.runtime.acoustic import DEFAULT_SCHEDULE, decode_windows

Rng = np.random.Generator
SHAPE = ACOUSTIC_PRESETS["tiny"].model_copy(update={"prompt_tokens": 20})
MIXTURE = Mixture(tokens=(10, 25), windows=2)
READERS = ("19", "26", "27", "30", "32", "40")


def recording(corpus: str, stem: str, speaker: str) -> data.Recording:
    return data.Recording(corpus, stem, speaker, Path(f"{stem}.ogg"))


def encoded(rng: Rng, tokens: int = 60) -> list[Encoded]:
    """Speakers of all corpora at two speeds; every code tells which token and level it belongs to."""
    found = []
    for corpus, speaker in (("librispeech", "19"), ("librispeech", "26"), ("kathleen", "kathleen"),
                            ("stories_speech", "af_bella")):  # fmt: skip
        for speed in (1.0, 0.84):
            for part in range(2):
                words = rng.integers(0, SHAPE.vocab, tokens)
                frames = np.repeat(words, 2)
                codes = (frames + np.arange(SHAPE.levels)[:, None]) % SHAPE.codes
                voice = np.abs(rng.standard_normal(voiceprint.WIDTH)).astype(np.float32)
                found.append(
                    Encoded(recording(corpus, f"{speaker}-{part}", speaker), speed, words, codes, voice)
                )
    return found


@pytest.fixture
def corpus(tmp_path: Path, rng: Rng, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of six LibriSpeech readers, two of them held out, and nothing else."""
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    (root / "librispeech").mkdir(parents=True)
    (root / "kathleen").mkdir()
    (root / "kathleen" / "transcripts.tsv").write_text("")
    (root / "stories.jsonl").write_text("")
    for reader in READERS:
        time = np.arange(int(16_000 * rng.uniform(3.2, 3.9))) / 16_000
        pitch = rng.uniform(90, 250)
        tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 8))
        audio = 0.1 * tone * np.abs(np.sin(2 * np.pi * 2.5 * time)) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(root / "librispeech" / f"{reader}-1.ogg", audio, 16_000)
    return root


def seeded_encoders() -> prepare.Encoders:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        words = Tokenizer(
            TokenizerShape(
                vocab=64, mels=20, front_width=16, width=16, layers=1, heads=2, ff_width=16, kernel=3
            )
        )
        return prepare.encoders(
            words.eval(), Codec(CODEC_PRESETS["tiny"]).eval(), voiceprint.Voiceprint().eval(), "cpu"
        )


# preparing


def test_prepare_covers_training_at_all_speeds_and_held_out_at_one(corpus: Path) -> None:
    recordings = data.recordings(corpus)
    count = prepare.run(recordings, seeded_encoders())
    assert count == 2 * (4 * len(prepare.SPEEDS) + 2)
    assert prepare.run(recordings, seeded_encoders()) == 0, "what exists is kept"
    for item in prepare.load(recordings):
        seconds = len(data.audio(item.recording)) / 16_000 / item.speed
        assert len(item.tokens) == pytest.approx(seconds * 25, abs=1.01)
        assert item.codes.shape == (4, 2 * len(item.tokens))
        assert item.speed == 1.0 or not splits.held_out(item.recording)
        assert np.linalg.norm(item.voice) == pytest.approx(1, abs=1e-3)


def test_copies_are_other_speakers(corpus: Path) -> None:
    prepare.run(data.recordings(corpus), seeded_encoders())
    training, _ = train.chosen(data.recordings(corpus))
    crops = Crops(prepare.load(training), SHAPE, MIXTURE, "cpu")
    assert len(crops.speakers) == len(training) * len(prepare.SPEEDS)


def test_preparations_of_other_weights_are_refused(corpus: Path, tmp_path: Path) -> None:
    """Another tokenizer, encoder or codebook; another decoder speaks the same codes."""
    weights = {"encoder.a": 1.0, "decoder.a": 1.0, "codebooks": 1.0}

    def codec(**changed: float) -> None:
        values = weights | {k.replace("_", "."): v for k, v in changed.items()}
        train.places.write_arrays(
            train.places.cache("codec") / "best.safetensors", {k: np.full(3, v) for k, v in values.items()}
        )
        train.places.write_json(train.places.cache("codec") / "best.json", {})

    train.places.write_arrays(train.places.cache("tokenizer") / "best.safetensors", {"a": np.ones(3)})
    train.places.write_json(train.places.cache("tokenizer") / "best.json", {})
    codec()
    prepare.same_source(tmp_path / "prepared")
    codec(decoder_a=2.0)
    prepare.same_source(tmp_path / "prepared")
    for changed in ({"encoder_a": 2.0}, {"codebooks": 2.0}):
        codec(**changed)
        prepare.same_source(tmp_path / "prepared", ("heard",))
        with pytest.raises(SpeechSSMError, match="the codec changed"):
            prepare.same_source(tmp_path / "prepared")


def test_no_training_list_touches_what_is_held_out(corpus: Path) -> None:
    training, validation = train.chosen(data.recordings(corpus))
    assert {r.speaker for r in training} | {r.speaker for r in validation} == {"19", "26", "27", "32"}
    assert validation
    assert not {r.speaker for r in training} & {r.speaker for r in validation}
    splits.refuse_held_out([*training, *validation])


def test_voiceprints_have_length_one_and_do_not_hear_level(rng: Rng) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        listener = voiceprint.Voiceprint().eval()
    audio = (0.01 * rng.standard_normal(40_000)).astype(np.float32)
    first = listener.of(audio)
    assert first.shape == (voiceprint.WIDTH,)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(listener.of(0.3 * audio), first, atol=1e-4)
    assert np.isfinite(listener.of(audio[:900])).all()


def test_pauses_are_cut_but_speech_is_kept(rng: Rng) -> None:
    speech = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    silence = (1e-5 * rng.standard_normal(48_000)).astype(np.float32)
    heard = voiceprint.without_pauses(np.concatenate([speech, silence, speech]))
    assert 32_000 <= len(heard) < 48_000


# examples


def test_prompt_and_window_never_overlap_and_stay_with_their_speaker(rng: Rng) -> None:
    crops = Crops(encoded(rng), SHAPE, MIXTURE, "cpu")
    assert crops.lengths.tolist() == [120] * 8
    for step in range(200):
        draw = np.random.default_rng(step)
        speakers = crops.draw_speakers(draw, 16, 25)
        prompts, first = crops.place(draw, speakers, 25)
        more = crops.beside(draw, speakers, prompts, 25)
        seen = [*zip(speakers, prompts, first, strict=True), *zip(speakers, prompts, more, strict=True)]
        for speaker, prompt, window in seen:
            low, high = crops.starts[speaker], crops.starts[speaker] + crops.lengths[speaker]
            assert low <= prompt
            assert prompt + 20 <= high
            assert low <= window
            assert window + 25 <= high
            assert prompt + 20 <= window or window + 25 <= prompt


def test_examples_carry_their_speakers_tokens_codes_and_voice(rng: Rng) -> None:
    crops = Crops(encoded(rng), SHAPE, MIXTURE, "cpu")
    batch = crops(3, 4, 10)
    for tokens, codes in ((batch.prompt_tokens, batch.prompt_codes), (batch.tokens, batch.codes)):
        frames = tokens.repeat_interleave(2, dim=1)
        expected = (frames[:, None] + torch.arange(SHAPE.levels)[:, None]) % SHAPE.codes
        torch.testing.assert_close(codes, expected)
    torch.testing.assert_close(batch.voice.norm(dim=1), torch.ones(5), atol=1e-5, rtol=0)
    again = crops(3, 4, 10)
    torch.testing.assert_close(again.tokens, batch.tokens)
    torch.testing.assert_close(again.known, batch.known)
    assert not torch.equal(crops(3, 5, 10).prompt_tokens, batch.prompt_tokens)


def test_windows_of_one_prompt_hear_it_as_if_alone(rng: Rng) -> None:
    """Three windows that share a prompt score as three rows with a prompt each."""
    mixture = Mixture(tokens=(10,), windows=3)
    batch = Crops(encoded(rng), SHAPE, mixture, "cpu")(0, 0, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = train.Acoustic(SHAPE).eval()
    each = {
        name: getattr(batch, name).repeat_interleave(3, 0)
        for name in ("prompt_tokens", "prompt_codes", "voice")
    }
    with torch.no_grad():
        (together, pooled), (apart, _) = (
            train.predict(model, batch),
            train.predict(model, replace(batch, **each)),
        )
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    assert pooled.shape[0] == 2
    with pytest.raises(ValueError, match="multiple of the 3 windows"):
        Crops(encoded(rng), SHAPE, mixture, "cpu")(0, 0, 7)


def test_shares_are_kept(rng: Rng) -> None:
    mixture = Mixture(shares={"kathleen": 0.2, "librispeech": 0.8}, original=0.3)
    crops = Crops(encoded(rng), SHAPE, mixture, "cpu")
    drawn = [crops.speakers[i] for i in crops.draw_speakers(rng, 5000, 25)]
    assert np.mean([c == "librispeech" for c, _, _ in drawn]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([s == 1.0 for _, _, s in drawn]) == pytest.approx(0.3, abs=0.03)
    assert not any(c == "stories_speech" for c, _, _ in drawn)


def test_masks_follow_soundstorm(rng: Rng) -> None:
    rows, levels, frames = 4000, 5, 40
    known, level, hidden = hide(rng, rows, levels, frames, Mixture())
    assert np.mean(level == 0) == pytest.approx(0.5, abs=0.03)
    assert np.mean(level == 1) == pytest.approx(0.5 / (1 + 1 / 2 + 1 / 3 + 1 / 4), abs=0.03)
    assert set(np.unique(level)) == set(range(levels))
    assert hidden.any(1).all()
    for row in range(rows):
        q = level[row]
        assert known[row, :q].all()
        np.testing.assert_array_equal(known[row, q], ~hidden[row])
        finer = known[row, q + 1 :]
        assert (finer == finer[:1]).all()
        assert not (finer & hidden[row]).any(), "frames known at finer levels are known at this one"
    coarse = hidden[(level == 0) & known[:, -1].sum(1).__eq__(0)].mean(1)
    assert coarse.mean() == pytest.approx(2 / np.pi, abs=0.05)
    assert np.mean(hidden[level > 0].all(1)) > 0.3


# training


def overfit_plan(**changes: object) -> train.Plan:
    plan = train.Plan(
        steps=400, batch=8, learning_rate=5e-3, warmup=10, dropout=0.0, smoothing=0.0, mixture=MIXTURE
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def test_training_learns_what_the_tokens_say(rng: Rng) -> None:
    """Codes are a function of the token here: a few hundred steps must find it."""
    run, crops = train.Run(SHAPE, overfit_plan(), "cpu"), Crops(encoded(rng), SHAPE, MIXTURE, "cpu")
    first = train.judge(run.averaged(), crops, 2, 8)
    voices = [float(run.advance(crops)["voice"]) for _ in range(90)]
    last = train.judge(run.averaged(), crops, 2, 8)
    assert first["nats 1"] > 0.8 * np.log(SHAPE.codes)
    assert last["score"] < 0.6 * first["score"]
    assert np.mean(voices[-10:]) < np.mean(voices[:10])


def test_code_embeddings_may_start_from_the_codec(rng: Rng) -> None:
    run = train.Run(SHAPE, overfit_plan(), "cpu")
    hidden_row = run.model.code_embedding[:, -1].clone()
    books = torch.from_numpy(
        5 + 3 * rng.standard_normal((SHAPE.levels, SHAPE.codes, SHAPE.code_width))
    ).float()
    run.start_from(books)
    table = run.model.code_embedding[:, :-1]
    torch.testing.assert_close(table.std(dim=(1, 2)), torch.ones(SHAPE.levels))
    apart = torch.cdist(table[1], table[1]) / torch.cdist(books[1], books[1]).clamp(min=1e-6)
    assert apart[0, 1:].std() < 1e-4, "distances keep their proportions"
    torch.testing.assert_close(run.model.code_embedding[:, -1], hidden_row)
    torch.testing.assert_close(run.average["code_embedding"], run.model.code_embedding.detach())
    with pytest.raises(ValueError, match="codebooks"):
        run.start_from(books[:, 1:])


def test_a_resumed_run_continues_bit_for_bit(rng: Rng, tmp_path: Path) -> None:
    items = encoded(rng)
    plan = overfit_plan(dropout=0.1)
    straight, crops = train.Run(SHAPE, plan, "cpu"), Crops(items, SHAPE, MIXTURE, "cpu")
    for _ in range(6):
        straight.advance(crops)
    halted = train.Run(SHAPE, plan, "cpu")
    for _ in range(3):
        halted.advance(crops)
    halted.save(tmp_path / "last.safetensors")
    resumed = train.Run(SHAPE, plan, "cpu")
    resumed.load(tmp_path / "last.safetensors")
    assert resumed.step == 3
    for _ in range(3):
        resumed.advance(crops)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in straight.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_a_run_that_goes_on_from_weights_warms_up_anew() -> None:
    plan = train.Plan(steps=300, warmup=100)
    assert plan.rate(100, 100) == plan.rate(0) == plan.learning_rate / 100
    assert plan.rate(200, 100) == plan.learning_rate
    assert plan.rate(300, 100) == pytest.approx(plan.learning_rate / 100)


def test_packed_recordings_are_the_prepared_ones(corpus: Path, tmp_path: Path) -> None:
    prepare.run(data.recordings(corpus), seeded_encoders())
    given = train.examples(corpus)
    packed.write(tmp_path / "packed", given)
    found = packed.read(tmp_path / "packed")
    for before, after in ((given.training, found.training), (given.validation, found.validation)):
        assert [e.speaker for e in before] == [e.speaker for e in after]
        for a, b in zip(before, after, strict=True):
            for name in ("tokens", "codes", "voice"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    (tmp_path / "other").write_bytes(b"no")
    with pytest.raises(SpeechSSMError, match="does not hold packed recordings"):
        packed.read(tmp_path / "other")


def test_the_whole_recipe_runs_and_resumes(corpus: Path, tmp_path: Path) -> None:
    """Prepare, train, be interrupted, train on; the best weights export and speak."""
    recordings = data.recordings(corpus)
    folder = tmp_path / "run"
    prepare.run(recordings, seeded_encoders(), folder / "prepared")
    plan = overfit_plan(steps=4, judge_every=2, judge_batches=1, mixture=Mixture(tokens=(10,), windows=2))
    train.run(train.examples(corpus, folder), "cpu", plan, SHAPE, folder)
    packed.write(tmp_path / "packed", train.examples(corpus, folder))
    train.run(packed.read(tmp_path / "packed"), "cpu", replace(plan, steps=6), SHAPE, folder)
    events = train.places.Log(folder / "train.jsonl").read()
    assert [e["step"] for e in events if e["event"] == "start"] == [0, 4]
    assert [e["step"] for e in events if e["event"] == "judge"] == [2, 4, 6]
    model = train.load_best(folder)
    assert model.shape == SHAPE
    held_out = prepare.load(splits.testing(recordings), (1.0,), folder / "prepared")
    chosen = evaluate.trials(held_out, SHAPE.prompt_tokens, 0)
    assert {t.speaker for t in chosen} == {"30", "40"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        codec = Codec(CODEC_PRESETS["tiny"]).eval()
    graph = evaluate.open_pass(model, threads=1)
    audio = evaluate.speak(chosen[0], graph, codec, "fast", 5)
    assert audio.shape == (chosen[0].tokens * 640,)
    assert np.isfinite(audio).all()
    assert evaluate.real_audio(chosen[0]).shape == audio.shape


# judging


def test_trials_never_take_the_prompt_from_their_window(rng: Rng) -> None:
    items = encoded(rng, tokens=300)
    chosen = evaluate.trials(items, 20, 1)
    assert {t.speaker == t.said.recording.speaker for t in chosen} == {True, False}
    for t in chosen:
        assert t.start >= 20
        assert 20 <= t.tokens <= 200
        assert t.start + t.tokens <= 300
        assert t.voice.codes.shape == (SHAPE.levels, 40)


def test_word_errors() -> None:
    truth = [["a", "b", "c"], ["d"]]
    assert evaluate.word_errors(truth, truth) == 0
    assert evaluate.word_errors(truth, [["a", "x", "c"], ["d", "e"]]) == 0.5
    assert evaluate.word_errors(truth, [[], []]) == 1


# timing


def test_operations_are_counted(rng: Rng) -> None:
    """Dense layers per frame, against the parameters of the reference model."""
    shape = ACOUSTIC_PRESETS["tiny"].model_copy(update={"radius": 2})
    matrices = sum(p.numel() for p in Acoustic(shape).layers.parameters() if p.dim() > 1)
    more = timing.flops(shape, 300) - timing.flops(shape, 200)
    attention = shape.layers * 2 * shape.width * (shape.prompt_frames + 5)
    ends = shape.levels * shape.code_width * shape.width + shape.code_width * (shape.width + shape.codes)
    assert more / 200 / 2 == pytest.approx(matrices + attention + ends)
    whole = timing.flops(shape.model_copy(update={"radius": None}), 300)
    assert whole > timing.flops(shape, 300)


def test_timed_rows_decode(rng: Rng) -> None:
    run = evaluate.open_pass(Acoustic(SHAPE).eval(), threads=1)
    (codes,), failed = decode_windows(run, [timing.row(SHAPE, 12, 3)], DEFAULT_SCHEDULE)
    assert codes.shape == (SHAPE.levels, 24)
    assert not failed

"""The codec's recipe: quantizer statistics, resuming, and what the crops are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import data, splits
from recipes.codec import crops as cropping
from recipes.codec import pack as packing
from recipes.codec import words
from recipes.codec.evaluate import entropy
from recipes.codec.losses import SCALES, reconstruction
from recipes.codec.quantizer import Trainer, nearest
from recipes.codec.train import Plan, Run, averaged, trimmed

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle.shapes.codec import CODEC_PRESETS
from speechssm.export.models.codec import Codec

TINY = CODEC_PRESETS["tiny"]
PLAN = Plan(steps=5, batch=2, crop_frames=4, quantize_from=0.2, critic_from=0.6, rest_from=0.8, warmup=2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small work is slower on several threads, and sums would depend on how it was split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Noise:
    """Crops by step from coloured noise."""

    def __call__(self, step: int, rows: int, samples: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(rows, samples, generator=generator)
        return 0.05 * (noise + torch.roll(noise, 1, 1))


def clusters(rng: np.random.Generator, count: int, width: int) -> torch.Tensor:
    centres = 3 * rng.standard_normal((16, width))
    return torch.from_numpy(
        (centres[rng.integers(16, size=count)] + 0.1 * rng.standard_normal((count, width))).astype(np.float32)
    )


def error(latents: torch.Tensor, model: Codec) -> float:
    left = latents
    for book in model.codebooks:
        left = left - book[nearest(left, book)]
    return float((left.square().mean() / latents.square().mean()).detach())


def test_kmeans_start_explains_clusters_and_each_level_helps() -> None:
    model, latents = Codec(TINY), clusters(np.random.default_rng(), 2000, TINY.latent)
    before = error(latents, model)
    trainer = Trainer(model)
    trainer.start(latents, torch.Generator().manual_seed(0), batch=2000)
    sums, codes = trainer.assign(latents, torch.Generator().manual_seed(0))
    errors = [float((latents - s).square().mean()) for s in sums]
    assert error(latents, model) < 0.01 < before
    assert all(a > b for a, b in pairwise(errors))
    assert codes.shape == (TINY.levels, 2000)


def test_averages_follow_moving_latents_and_dead_codes_come_back() -> None:
    rng = np.random.default_rng()
    model, latents = Codec(TINY), clusters(rng, 2000, TINY.latent)
    trainer = Trainer(model)
    trainer.start(latents, torch.Generator().manual_seed(0), batch=500)
    moved = clusters(rng, 2000, TINY.latent) + 5
    generator = torch.Generator().manual_seed(1)
    far = error(moved, model)
    for _ in range(600):
        trainer.assign(moved[torch.randperm(2000, generator=generator)[:500]], generator)
    assert error(moved, model) < 0.02 < far
    used = torch.unique(nearest(moved, model.codebooks[0]))
    assert len(used) >= 16


def test_a_last_fit_gives_idle_codes_work_and_lowers_the_error() -> None:
    model, latents = Codec(TINY), clusters(np.random.default_rng(), 4000, TINY.latent)
    with torch.no_grad():
        model.codebooks[0, 5:] += 100.0  # far from everything: nobody ever takes them
    trainer, before = Trainer(model), error(latents, model)
    trainer.refit(latents, torch.Generator().manual_seed(0))
    assert error(latents, model) < 0.5 * before
    assert len(torch.unique(nearest(latents, model.codebooks[0]))) > 5


def test_straight_through_gives_the_encoder_the_decoders_gradient() -> None:
    trainer = Trainer(Codec(TINY))
    latents = torch.randn(3, 7, TINY.latent, requires_grad=True)
    through, commitment, _ = trainer(latents, torch.Generator().manual_seed(0))
    slope = torch.randn_like(through)
    through.backward(slope)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(latents.grad, slope)
    assert float(commitment.detach()) > 0


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    """Over all stages: autoencoder, quantized, critic, resting codes."""
    whole = Run(TINY, PLAN, "cpu")
    for _ in range(PLAN.steps):
        whole.advance(Noise())
    for stop in (1, 3, 4):
        first = Run(TINY, PLAN, "cpu")
        for _ in range(stop):
            first.advance(Noise())
        first.save(tmp_path / "last.safetensors")
        second = Run(TINY, replace(PLAN, seed=PLAN.seed), "cpu")
        second.load(tmp_path / "last.safetensors")
        while second.step < PLAN.steps:
            report = second.advance(Noise())
        assert "critic" in report
        for (name, a), b in zip(
            whole.model.state_dict().items(), second.model.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, msg=f"{name} after resuming at step {stop}")
        for name, a in whole.average.items():
            torch.testing.assert_close(a, second.average[name], msg=f"averaged {name}")


def test_codes_stay_while_the_decoder_learns() -> None:
    """What is encoded once encoder and codebooks rest is what the finished codec would encode."""
    run = Run(TINY, replace(PLAN, steps=40, rest_from=0.1), "cpu")
    audio = Noise()(99, 2, 40 * FRAME_SAMPLES)
    while not run.resting:
        run.advance(Noise())
    early, sound = averaged(run).encode(audio), averaged(run).decoder.gain.weight.clone()
    while run.step < 40:
        run.advance(Noise())
    assert torch.equal(early, averaged(run).encode(audio))
    assert torch.equal(early, run.model.encode(audio))
    assert not torch.equal(sound, averaged(run).decoder.gain.weight)


def test_training_lowers_the_distance() -> None:
    torch.manual_seed(0)
    run, losses = Run(TINY, replace(PLAN, steps=1000, quantize_from=2.0, critic_from=2.0), "cpu"), []
    for _ in range(60):
        losses.append(float(run.advance(Noise())["mel"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_distance_is_zero_for_equals_and_grows_with_the_error() -> None:
    real = Noise()(3, 2, 4096)
    noise = torch.randn_like(real)
    sizes = [float(reconstruction(real + level * noise, real)[0]) for level in (0.0, 0.003, 0.03)]
    assert sizes[0] == 0.0
    assert sizes[0] < sizes[1] < sizes[2]
    assert len(SCALES) == 5


def test_judged_part_has_every_window_and_its_future() -> None:
    shape = CODEC_PRESETS["demo"]
    samples, part = trimmed(shape, 50)
    assert part.stop - part.start == 50 * FRAME_SAMPLES
    assert part.start == shape.fft - FRAME_SAMPLES
    assert part.stop + shape.fft - FRAME_SAMPLES + shape.lookahead * FRAME_SAMPLES == samples


def test_crops_are_the_same_for_a_step_and_hold_nothing_held_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stems = {
        "kathleen": [f"arctic_a{i:04d}_1" for i in range(1, 221)],
        "librispeech": [f"{i}-1-0001" for i in range(1, 221)],
        "stories_speech": [f"alice_{i}" if i % 2 else f"oz_{i}" for i in range(221)],
    }
    every = [
        data.Recording(corpus, stem, "af_sky", tmp_path / stem)
        for corpus, names in stems.items()
        for stem in names
    ]
    monkeypatch.setattr(data, "recordings", lambda root: every)
    monkeypatch.setattr(data, "audio", lambda r: np.full(4000, 1 + every.index(r), np.int16))
    training, validation = cropping.chosen(tmp_path)
    assert validation
    assert not {r.key for r in training} & {r.key for r in validation}
    assert not any(splits.held_out(r) for r in [*training, *validation])
    drawn = cropping.Crops(training, "cpu", seed=5)
    torch.testing.assert_close(drawn(3, 4, 640), drawn(3, 4, 640), atol=0, rtol=0)
    assert not torch.equal(drawn(3, 4, 640), drawn(4, 4, 640))
    assert float(drawn(7, 16, 640).abs().max()) <= 0.95 + 1e-6


def test_a_pack_holds_no_held_out_recording_and_reads_as_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "cache"))
    root, out = tmp_path / "data", tmp_path / "pack"
    for corpus in cropping.SHARES:
        (root / corpus).mkdir(parents=True)
    stems = [f"arctic_a{i:04d}_1" for i in range(1, 60)]
    (root / "kathleen" / "transcripts.tsv").write_text("".join(f'{s}\tsay "{s}"\n' for s in stems))
    rows = [
        {"file": f"{t}_{v}.ogg", "voice": v, "text": t}
        for t in ("oz", "alice")
        for v in ("af_sky", "af_kore")
    ]
    (root / "stories.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in (
        *(f"kathleen/{s}.ogg" for s in stems),
        *(f"librispeech/{i}-1-1.ogg" for i in range(60)),
        *(f"stories_speech/{r['file']}" for r in rows),
    ):
        (root / name).write_bytes(b"x" * 1000)
    copied = packing.run(root, out, mebibytes=0.04)
    found = data.recordings(out)
    assert 20_000 < copied <= 0.04 * 2**20
    assert copied == 1000 * len(found) == sum(r.path.stat().st_size for r in found)
    assert not any(splits.held_out(r) for r in found)
    assert {r.corpus for r in found} == set(cropping.SHARES)
    assert next(r for r in found if r.corpus == "kathleen").text.startswith('say "')


def test_word_errors_ignore_case_and_punctuation(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps({"a": "Not at this particular case, Tom.", "b": "No"}))
    heard = {
        "real": {"a": "not at this particular case tom", "b": "no."},
        "made": {"a": "not at particular", "b": ""},
    }
    (tmp_path / "transcripts.json").write_text(json.dumps(heard))
    rates = words.run(tmp_path)
    assert rates["real"] == 0.0
    assert rates["made"] == rates["added"] == pytest.approx(100 * 4 / 7)


def test_entropy_of_codes() -> None:
    level = np.repeat(np.arange(8), 25)
    assert entropy(level, 1024) == pytest.approx(3.0)
    assert entropy(np.zeros(10, np.int64), 1024) == 0.0


def test_gain_learns_faster_in_an_optimizer_that_keeps_the_models_order() -> None:
    """Checkpoints number the optimizer's entries, so groups must not reorder parameters."""
    run = Run(TINY, PLAN, "cpu")
    wanted = [n for n, p in run.model.named_parameters() if p.requires_grad]
    names = {id(p): n for n, p in run.model.named_parameters()}
    assert [names[id(p)] for p in run.trained] == wanted
    run.advance(Noise())
    rates = {names[id(p)]: g["lr"] for g in run.codec_steps.param_groups for p in g["params"]}
    assert rates["decoder.gain.weight"] == pytest.approx(4 * rates["decoder.gain.bias"])
    assert "codebooks" not in rates

"""The n-gram yardstick against its definition, and the language model's batches and resumption."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import places
from recipes.language import baseline, judge, ngram, streams, train

from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.export.models.griffin import Griffin
from speechssm.export.models.transformer import transformer_shape

SHAPE = LMShape(
    vocab=20,
    width=16,
    lru_width=16,
    heads=2,
    kv_heads=1,
    head_dim=8,
    window=8,
    mlp_width=24,
    blocks=griffin_blocks(3),
)
SETTINGS: dict[str, Any] = {
    "seed": 1, "segment_tokens": 40, "short_tokens": 20, "batch_segments": 3, "steps": 8, "warmup": 2,
    "peak_rate": 0.01, "weight_decay": 0.1, "compile": False, "compared_steps": 2, "average": 0.9,
    "finish_share": 0.25, "finish_real_share": 1.0, "real_share": 0.2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def slow_kneser_ney(data: list[list[int]], vocab: int, history: tuple[int, ...], token: int) -> float:
    """The definition with dictionaries, for an order of len(history) + 1."""

    def counts(n: int) -> Counter[tuple[int, ...]]:
        if n == top:
            return Counter(tuple(s[i : i + n]) for s in data for i in range(len(s) - n + 1))
        types = {tuple(s[i : i + n + 1]) for s in data for i in range(len(s) - n)} if n + 1 <= top else set()
        # Every stream begins once, so its first n-gram has the beginning as one more left context.
        found: Counter[tuple[int, ...]] = Counter(g[1:] for g in types)
        found.update(tuple(s[:n]) for s in data if len(s) >= n)
        return found

    top = len(history) + 1
    p = 1 / vocab
    for n in range(1, top + 1):
        table = counts(n)
        context = history[len(history) - n + 1 :]
        total = sum(c for g, c in table.items() if g[:-1] == context)
        if not total:
            continue
        types = sum(1 for g in table if g[:-1] == context)
        once, twice = (sum(1 for c in table.values() if c == k) for k in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        p = max(table[(*context, token)] - discount, 0) / total + discount * types / total * p
    return p


def test_kneser_ney_is_its_definition() -> None:
    rng = np.random.default_rng()
    vocab = 4
    data = [rng.integers(0, vocab, int(rng.integers(6, 40))).tolist() for _ in range(4)]
    model = ngram.KneserNey([np.array(s) for s in data], vocab, order=3)
    for _ in range(40):
        history, token = rng.integers(0, vocab, 2), int(rng.integers(vocab))
        expected = slow_kneser_ney(data, vocab, tuple(history.tolist()), token)
        assert model.probability(history[None], np.array([token]))[0] == pytest.approx(expected, rel=1e-9)


def test_kneser_ney_sums_to_one_and_learns() -> None:
    rng = np.random.default_rng()
    line = np.resize(np.array([3, 1, 4, 1, 5, 9, 2, 6]), 4000)
    line[rng.random(4000) < 0.02] = 7
    model = ngram.KneserNey([line], 10)
    for history in (rng.integers(0, 10, 4), np.array([-1, -1, -1, 3]), np.array([-1, -1, -1, -1])):
        each = model.probability(np.repeat(history[None], 10, 0), np.arange(10))
        assert each.sum() == pytest.approx(1)
    assert model.loss(np.resize(np.array([3, 1, 4, 1, 5, 9, 2, 6]), 800)).mean() < 0.2
    assert model.loss(rng.integers(0, 10, 800)).mean() > math.log(10)


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path))
    write_streams()


def write_streams() -> None:
    """Two stories and one held out, real speech of two corpora, all of a repeating pattern."""
    rng = np.random.default_rng(2)
    rows = []
    names = ["grimm-00000", "grimm-00001", "lewis-carroll_alices-00000"]
    made = [(n, "stories_text", "rms", "alice" in n) for n in names]
    made += [(f"kathleen--arctic_a{i:04d}_1", "kathleen", "kathleen", i % 10 == 0) for i in range(1, 21)]
    made += [(f"librispeech--{i}-1-1", "librispeech", str(i), i % 10 == 0) for i in range(101, 112)]
    for name, corpus, speaker, held_out in made:
        length = int(rng.integers(50, 90)) if corpus == "stories_text" else int(rng.integers(5, 30))
        # Held-out streams hold tokens 10..19, training streams 0..9: a leak shows in the batch.
        values = (rng.integers(0, 10) + np.arange(length)) % 10 + (10 if held_out else 0)
        places.write_arrays(streams.folder() / f"{name}.safetensors", {"tokens": values.astype(np.int16)})
        rows.append(
            {"name": name, "tokens": length, "corpus": corpus, "speaker": speaker, "held_out": held_out}
        )
    (streams.folder() / "index.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.usefixtures("tokens")
def test_batches_hold_no_held_out_token_and_fill_segments() -> None:
    source = streams.Source(streams.load(), SETTINGS)
    lengths = set()
    for step in range(8):
        batch = source.batch(step)
        assert torch.equal(batch, source.batch(step))
        assert batch.shape in ((3, 40), (6, 20))
        assert batch.max() < 10
        assert ((batch >= 0) | (batch == streams.IGNORED)).all()
        lengths |= set((batch >= 0).sum(1).tolist())
    assert {20, 40} <= lengths


@pytest.mark.usefixtures("tokens")
def test_training_resumes_exactly_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.run("cpu", SETTINGS, SHAPE)
    whole = places.load_tensors(train.folder() / "average.safetensors")
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "again"))
    write_streams()
    for _ in range(SETTINGS["steps"]):  # no time at all is one step a run
        train.run("cpu", SETTINGS, SHAPE, minutes=0)
    parts = places.load_tensors(train.folder() / "average.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0, msg=name)
    pytest.importorskip("matplotlib")
    figures = judge.run(SETTINGS, SHAPE)
    assert figures["alice"]["five_gram_nat"] > 0
    assert np.isfinite(figures["real"]["model_nat"])
    assert (train.folder() / "language.png").stat().st_size > 1000


def test_whole_attention_is_local_attention_over_a_window_that_holds_all(rng: np.random.Generator) -> None:
    shape = transformer_shape(SHAPE, "mha", capacity=30)
    fused = baseline.model(shape).eval()
    plain = Griffin(shape).eval()
    plain.load_state_dict(fused.state_dict())
    tokens = torch.from_numpy(rng.integers(0, SHAPE.vocab, (3, 31)))
    with torch.inference_mode():
        torch.testing.assert_close(fused(tokens)[0], plain(tokens)[0], rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="do not fit"):
            fused(torch.cat([tokens, tokens], 1))
    assert isinstance(baseline.model(SHAPE), Griffin)


@pytest.mark.usefixtures("tokens")
def test_a_transformer_of_the_same_size_is_trained_beside_it() -> None:
    figures = baseline.run("cpu", {**SETTINGS, "shape": SHAPE.model_dump()})
    sizes = [figures[kind]["parameters"] for kind in ("griffin", "transformer")]
    assert abs(sizes[0] - sizes[1]) < 0.4 * sizes[0]
    assert {f["step"] for f in figures.values()} == {2}
    assert all(np.isfinite(f["alice"]["model_nat"]) for f in figures.values())
    assert not (train.folder() / "average.safetensors").exists(), "the voice's run is another"


@pytest.mark.usefixtures("tokens")
def test_the_weights_that_knew_the_watched_stretches_best_are_kept() -> None:
    s = {**SETTINGS, "watched_share": 0.5, "watch_steps": 1, "peak_rate": 0.5, "steps": 6}
    everything = streams.load()
    watch = streams.watched(everything, s)
    left_out = {x.name for some in watch.values() for x in some}
    assert {len(some) > 0 for some in watch.values()} == {True}
    assert not any(x.held_out for some in watch.values() for x in some)
    source = streams.Source(everything, s)
    drawn = {x.name for pool in (source.stories, source.short, source.long) for x in pool.streams}
    assert drawn
    assert not drawn & left_out
    kept = train.run("cpu", s, SHAPE)
    events = [e for e in places.Log(train.folder() / "log.jsonl").read() if "watched" in e]
    assert len(events) == s["steps"]
    model, average = baseline.model(SHAPE), places.load_tensors(kept)
    now = np.mean([train.watched_nats(model, average, some, s) for some in watch.values()])
    assert now == pytest.approx(min(e["watched"] for e in events), abs=5e-3)
    assert train.step_of_average(train.folder()) == min(events, key=lambda e: e["watched"])["step"]
    # A finished run is not begun again.
    before = kept.stat().st_mtime_ns
    assert train.run("cpu", s, SHAPE) == kept
    assert kept.stat().st_mtime_ns == before

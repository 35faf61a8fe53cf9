"""The sampler in the graph against a plain numpy one, and its edges."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from speechssm.export.graphs import sampler
from speechssm.export.graphs.builder import FLOAT, INT64, GraphBuilder

Run = onnxruntime.InferenceSession


def build(vocab: int) -> Run:
    g = GraphBuilder("sampler")
    logits = g.input("logits", FLOAT, ("b", vocab))
    token, logprob, finite = sampler.sample(g, logits, vocab, sampler.sampler_inputs(g))
    g.output("token", token, INT64, ("b",))
    g.output("logprob", logprob, FLOAT, ("b",))
    g.output("finite", finite, FLOAT, ("b",))
    return Run(g.model().SerializeToString(), providers=["CPUExecutionProvider"])


def draw(run: Run, logits: np.ndarray, *, temperature=1.0, top_k=0, top_p=1.0, uniform=0.5):
    rows = len(logits)
    per_row = lambda v, t: np.broadcast_to(np.asarray(v, t), (rows,)).copy()  # noqa: E731
    feeds = {
        "logits": logits.astype(np.float32),
        "temperature": per_row(temperature, np.float32),
        "top_k": per_row(top_k, np.int64),
        "top_p": per_row(top_p, np.float32),
        "uniform": per_row(uniform, np.float32),
    }
    return run.run(None, feeds)


def plain(logits: np.ndarray, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """float64, one row: sort, cut, renormalise, first entry past uniform."""
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp(logits.astype(np.float64) / temperature - (logits / temperature).max())
    if top_k == 0 and top_p >= 1:
        order = np.arange(len(p))
        kept = p
    else:
        order = np.argsort(-p, kind="stable")
        kept = p[order][: top_k or len(p)]
        kept = kept / kept.sum()
        before = np.concatenate([[0], np.cumsum(kept)[:-1]])
        kept = kept[(before < top_p) | (np.arange(len(kept)) == 0)]
    cumulative = np.cumsum(kept)
    return int(order[min(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), len(kept) - 1)])


@pytest.mark.parametrize("vocab", [2, 50, 333, 1500])
def test_equals_the_plain_sampler(vocab: int, rng: np.random.Generator) -> None:
    run = build(vocab)
    rows = 400
    logits = (3 * rng.standard_normal((rows, vocab))).astype(np.float32)
    temperature = rng.choice([0, 0.3, 1, 2.5], rows).astype(np.float32)
    top_k = rng.choice([0, 1, 2, min(vocab, 40)], rows)
    top_p = rng.choice([1, 0.9, 0.5, 1e-6], rows).astype(np.float32)
    if vocab > sampler.K_MAX:
        top_k[top_p < 1] = 40  # beyond k_max the nucleus is cut, by design
    uniform = (rng.integers(0, 1 << 24, rows) * 2.0**-24).astype(np.float32)
    token, logprob, finite = draw(
        run, logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
    )
    expected = [plain(*given) for given in zip(logits, temperature, top_k, top_p, uniform, strict=True)]
    # float32 sums may fall on the other side of a boundary once in thousands of draws.
    assert np.mean(token == expected) > 0.99
    scaled = logits.astype(np.float64) / np.where(temperature == 0, 1, temperature)[:, None]
    reference = scaled - scaled.max(1, keepdims=True)
    reference -= np.log(np.exp(reference).sum(1, keepdims=True))
    assert np.abs(logprob - reference[np.arange(rows), token]).max() < 1e-4
    assert (finite == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-24])
def test_uniform_at_its_ends_stays_in_range(uniform: float) -> None:
    logits = np.array([[0.0, -np.inf, 0.0, -np.inf], [-np.inf, -np.inf, -np.inf, 5.0]], np.float32)
    run = build(4)
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.7), (1, 0.1)):
        token, *_ = draw(run, logits, top_k=top_k, top_p=top_p, uniform=uniform)
        assert token[0] in (0, 2)
        assert token[1] == 3


def test_frequencies_follow_the_distribution(rng: np.random.Generator) -> None:
    """10 000 draws: each token's share is within five standard errors of its probability."""
    logits = rng.standard_normal(12).astype(np.float32)
    draws = 10_000
    uniform = (rng.integers(0, 1 << 24, draws) * 2.0**-24).astype(np.float32)
    token, *_ = draw(build(12), np.tile(logits, (draws, 1)), uniform=uniform)
    p = np.exp(logits) / np.exp(logits).sum()
    share = np.bincount(token, minlength=12) / draws
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / draws)).all()


def test_rows_have_their_own_settings(rng: np.random.Generator) -> None:
    run = build(20)
    logits = rng.standard_normal((3, 20)).astype(np.float32)
    settings = [(0.0, 0, 1.0, 0.9), (1.0, 5, 0.8, 0.4), (2.0, 0, 1.0, 0.1)]
    t, k, p, u = (list(column) for column in zip(*settings, strict=True))
    together, *_ = draw(run, logits, temperature=t, top_k=k, top_p=p, uniform=u)
    alone = [
        draw(run, logits[i : i + 1], temperature=t[i], top_k=k[i], top_p=p[i], uniform=u[i])[0][0]
        for i in range(3)
    ]
    assert together.tolist() == alone


def test_nan_logits_are_reported_and_stay_in_range() -> None:
    logits = np.full((2, 8), np.nan, np.float32)
    logits[1] = 0
    token, _, finite = draw(build(8), logits, top_k=3)
    assert np.isnan(finite[0])
    assert finite[1] == 0
    assert ((token >= 0) & (token < 8)).all()

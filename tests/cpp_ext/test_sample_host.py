"""The native sampler against its definition in float64, on every instruction set, and as an operator of a graph."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from speechssm.cpp_ext.native import Sample
from speechssm.export.graphs.builder import FLOAT, INT64, GraphBuilder
from speechssm.export.graphs.sample_function import sample_token
from speechssm.export.graphs.sampler import sampler_inputs
from tests.cpp_ext.lru_native import AVX2, AVX512, SCALAR, pointer, poisoned

VOCABS = (1, 2, 15, 17, 256, 257, 500, 5000, 32_775)


def settings(rng: np.random.Generator, rows: int, vocab: int) -> dict[str, np.ndarray]:
    """Rows of every kind: greedy, whole, cut to k, cut to p, both, and limits beyond the vocabulary."""
    kinds = rng.integers(0, 5, rows)
    return {
        "temperature": np.where(kinds == 0, 0, rng.uniform(0.3, 1.5, rows)).astype(np.float32),
        "top_k": np.where(np.isin(kinds, (2, 4)), rng.integers(1, 2 * vocab + 1, rows), 0),
        "top_p": np.where(np.isin(kinds, (3, 4)), rng.uniform(0.01, 1, rows), 1).astype(np.float32),
        "uniform": (rng.integers(0, 1 << 24, rows) / (1 << 24)).astype(np.float32),
    }


def run(
    host: Any, logits: np.ndarray, given: dict[str, np.ndarray], k_max: int = 1024
) -> tuple[np.ndarray, ...]:
    rows, vocab = logits.shape
    host.lib.speechssm_sample_workspace_bytes.restype = ctypes.c_int64
    size = host.lib.speechssm_sample_workspace_bytes(vocab)
    out = poisoned((rows,), np.int64), poisoned((rows,), np.float32), poisoned((rows,), np.float32)
    workspace = np.full(size, 0xFF, np.uint8)
    keep = [np.ascontiguousarray(a) for a in (logits, *given.values())]
    call = Sample(
        ctypes.sizeof(Sample), rows, vocab, k_max, 0, *map(pointer, keep), *map(pointer, out),
        pointer(workspace), size,
    )  # fmt: skip
    status = host.lib.speechssm_sample_host(ctypes.byref(call))
    assert status == 0, host.text(status)
    return out


def border(logits: np.ndarray, given: dict[str, Any]) -> float:
    """How far, in probability, a token may lie from its place: float32 sums of what logits of that size leave."""
    size = float(np.abs(logits[np.isfinite(logits)]).max())
    return 3e-6 + 3e-7 * size / (float(given["temperature"]) if given["temperature"] > 0 else 1)


def misplaced(logits: np.ndarray, token: int, given: dict[str, Any], k_max: int) -> float:
    """How far the uniform number lies, in probability, outside the stretch that the definition gives ``token``."""
    if not given["temperature"] > 0:
        return 0.0 if token == int(np.argmax(logits)) else 1.0
    weight = np.exp((logits.astype(np.float64) - logits.max()) / float(given["temperature"]))
    order = np.arange(len(logits))
    if given["top_k"] or given["top_p"] < 1:
        order = np.argsort(-weight, kind="stable")
        most = min(k_max, len(order))
        order = order[: min(int(given["top_k"]) or most, most)]
        before = np.cumsum(weight[order]) - weight[order]
        share = before / weight[order].sum()
        if token in order[share >= float(given["top_p"])][1:]:
            return float(share[list(order).index(token)] - given["top_p"])
        inside = share < float(given["top_p"])
        inside[0] = True
        order = order[inside]
    if token not in order:
        return 1.0
    upper = np.cumsum(weight[order]) / weight[order].sum()
    at = list(order).index(token)
    lower = upper[at] - weight[token] / weight[order].sum()
    return max(0.0, float(lower - given["uniform"]), float(given["uniform"] - upper[at]))


@pytest.mark.parametrize("isa", [SCALAR, AVX2, AVX512])
@pytest.mark.parametrize("vocab", VOCABS)
def test_tokens_are_those_of_the_definition(
    host: Any, rng: np.random.Generator, isa: int, vocab: int
) -> None:
    if host.set_isa(isa) != isa:
        pytest.skip("this processor has no such instructions")
    try:
        rows, k_max = 12, int(rng.integers(1, 1025))
        logits = (rng.standard_normal((rows, vocab)) * rng.uniform(0.1, 12)).astype(np.float32)
        logits[0, rng.random(vocab) < 0.5] = logits[0, 0]  # ties
        given = settings(rng, rows, vocab)
        token, logprob, finite = run(host, logits, given, k_max)
        assert (finite == 0).all()
        for b in range(rows):
            row = {name: value[b] for name, value in given.items()}
            assert 0 <= token[b] < vocab
            assert misplaced(logits[b], int(token[b]), row, k_max) <= border(logits[b], row), (b, row)
            scaled = logits[b].astype(np.float64) / (
                float(row["temperature"]) if row["temperature"] > 0 else 1
            )
            wanted = scaled[token[b]] - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())
            assert logprob[b] == pytest.approx(wanted, rel=2e-6, abs=border(logits[b], row))
    finally:
        host.set_isa(AVX512)


def test_every_token_has_its_share_of_uniform_numbers(host: Any, rng: np.random.Generator) -> None:
    count, vocab = 4000, 7
    logits = np.repeat(rng.standard_normal((1, vocab)).astype(np.float32), count, 0)
    given = {
        "temperature": np.ones(count, np.float32),
        "top_k": np.zeros(count, np.int64),
        "top_p": np.ones(count, np.float32),
        "uniform": ((np.arange(count) + 0.5) / count).astype(np.float32),
    }
    token, logprob, _ = run(host, logits, given)
    weight = np.exp(logits[0].astype(np.float64))
    assert np.abs(np.bincount(token, minlength=vocab) - count * weight / weight.sum()).max() <= 1
    assert np.allclose(np.exp(logprob), (weight / weight.sum())[token], rtol=1e-5)


def test_a_row_is_the_same_bits_alone(host: Any, rng: np.random.Generator) -> None:
    logits, given = rng.standard_normal((9, 519)).astype(np.float32), settings(rng, 9, 519)
    together = run(host, logits, given)
    for b in range(9):
        alone = run(host, logits[b : b + 1], {name: value[b : b + 1] for name, value in given.items()})
        assert all(a[0].tobytes() == t[b].tobytes() for a, t in zip(alone, together, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 40, 499])
def test_damage_shows_in_its_row_alone(host: Any, rng: np.random.Generator, value: float, at: int) -> None:
    logits, given = rng.standard_normal((6, 500)).astype(np.float32), settings(rng, 6, 500)
    logits[2, at] = value
    token, _, finite = run(host, logits, given)
    assert np.isnan(finite).tolist() == [b == 2 for b in range(6)]
    assert ((token >= 0) & (token < 500)).all()


def test_what_cannot_be_is_never_drawn(host: Any, rng: np.random.Generator) -> None:
    logits, given = rng.standard_normal((200, 300)).astype(np.float32), settings(rng, 200, 300)
    never = rng.random((200, 300)) < 0.9
    never[:, 7] = False
    logits[never] = -np.inf
    given["uniform"][::2] = np.float32(1 - 2**-24)
    token, _, finite = run(host, logits, given)
    assert (finite == 0).all()
    assert not never[np.arange(200), token].any()


def test_refuses_what_it_cannot_read(host: Any, rng: np.random.Generator) -> None:
    call = Sample(ctypes.sizeof(Sample), 1, 8, 4)
    assert "NULL" in host.text(host.lib.speechssm_sample_host(ctypes.byref(call)))
    assert "below 1" in host.text(
        host.lib.speechssm_sample_host(ctypes.byref(Sample(ctypes.sizeof(Sample), 1, 0, 4)))
    )
    assert "rebuild" in host.text(host.lib.speechssm_sample_host(ctypes.byref(Sample(8, 1, 8, 4))))
    assert host.lib.speechssm_sample_host(None) != 0


def opened(vocab: int, library: Path | None) -> ort.InferenceSession:
    g = GraphBuilder("sampler")
    logits = g.input("logits", FLOAT, ("b", vocab))
    token, logprob, finite = sample_token(g, logits, vocab, sampler_inputs(g))
    g.output("token", token, INT64, ("b",))
    g.output("logprob", logprob, FLOAT, ("b",))
    g.output("finite", finite, FLOAT, ("b",))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(g.model().SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("vocab", [3, 500, 4099])
def test_operator_and_function_agree(library: Path, rng: np.random.Generator, vocab: int) -> None:
    native, plain = opened(vocab, library), opened(vocab, None)
    for rows in (1, 40):
        logits = (3 * rng.standard_normal((rows, vocab))).astype(np.float32)
        given = {"logits": logits, **settings(rng, rows, vocab)}
        mine, theirs = native.run(None, given), plain.run(None, given)
        for b in np.flatnonzero(mine[0] != theirs[0]):  # two sums may be rounded to either side of a border
            row = {name: value[b] for name, value in given.items() if name != "logits"}
            assert misplaced(logits[b], int(theirs[0][b]), row, 1024) <= 5 * border(logits[b], row)
            assert misplaced(logits[b], int(mine[0][b]), row, 1024) <= border(logits[b], row)
        same = mine[0] == theirs[0]
        assert same.mean() > 0.9
        assert np.allclose(mine[1][same], theirs[1][same], rtol=1e-5, atol=1e-5)
        assert (mine[2] == 0).all()
    with pytest.raises(Exception, match="must be"):
        native.run(None, {**given, "top_p": np.ones(rows + 1, np.float32)})

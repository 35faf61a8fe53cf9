"""Size, speed and quality of every storage, measured together."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssm.errors import ExportError
from speechssm.export.graphs.lm_weights import model_parameters
from speechssm.export.storage import STORAGES
from speechssm.export.tradeoff import compare_storages, read_tokens, table
from tests.doubles.lm import TINY, shaken


@torch.no_grad()
def test_loss_is_the_reference_s_and_all_storages_are_compared(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model = shaken(TINY, int(rng.integers(1 << 30)))
    tokens = rng.integers(0, TINY.vocab, (2, 21))
    costs = compare_storages(TINY, model_parameters(model), tmp_path, tokens=tokens, steps=3)
    assert [c.storage for c in costs] == [*STORAGES, "float32", "float32"]
    assert [c.ring for c in costs] == [*["float32"] * len(STORAGES), "float16", "int8"]
    assert costs[0].session_bytes > costs[-2].session_bytes > costs[-1].session_bytes
    assert 0 < costs[-2].scaled < costs[-1].scaled < 0.1
    costs = costs[: len(STORAGES)]
    logits, _ = model(torch.from_numpy(tokens[:, :-1]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten())
    assert abs(costs[0].loss - float(loss)) < 1e-4
    by_name = {c.storage: c for c in costs}
    assert (by_name["float32"].scaled, by_name["float32"].cosine) == pytest.approx((0, 1))
    drift = [by_name[s].scaled for s in ("float32", "float16", "bfloat16", "int4")]
    assert drift == sorted(drift)
    assert by_name["int4"].scaled > 1e-3
    assert all(len(c.seconds) == 3 and c.tokens_per_second > 0 for c in costs)
    text = table(costs, "test tokens")
    assert all(s in text for s in STORAGES)
    assert list(tmp_path.iterdir()) == []


def test_without_held_out_tokens_the_model_samples_its_own(tmp_path: Path) -> None:
    (cost,) = compare_storages(
        TINY, model_parameters(shaken(TINY, 1)), tmp_path, storages=["float32"], rings=[], steps=1
    )
    assert 0 < cost.loss < math.log(TINY.vocab)


def test_held_out_tokens_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(9))
    assert read_tokens(path, 9).shape == (1, 9)
    with pytest.raises(ExportError, match="tokens up to 8, the model has 8"):
        read_tokens(path, 8)
    np.save(path, np.zeros((2, 3)))
    with pytest.raises(ExportError, match="float64"):
        read_tokens(path, 8)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ExportError, match=r"expected an \.npy file"):
        read_tokens(path, 8)
    with pytest.raises(ExportError, match="there is no file"):
        read_tokens(tmp_path / "none.npy", 8)

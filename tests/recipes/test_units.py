"""Measures and targets of the tokenizer's recipe against slow, obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipes import cluster, targets, units, views
from recipes.teachers import align


def levenshtein(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_edit_distance_is_levenshtein() -> None:
    rng = np.random.default_rng()
    for _ in range(200):
        a, b = (rng.integers(0, 4, rng.integers(0, 15)).tolist() for _ in range(2))
        assert units.edit_distance(a, b) == levenshtein(a, b)


def test_runs_are_removed() -> None:
    assert units.runs_removed([3, 3, 1, 1, 1, 3]) == [3, 1, 3]
    assert units.runs_removed([]) == []


def test_spread_of_equal_and_of_unrelated_texts() -> None:
    rng = np.random.default_rng()
    a = rng.integers(0, 50, 60)
    assert units.spread([a, np.repeat(a, 3)]) == 0
    assert units.spread([a, a + 100]) == 1


def test_pnmi_of_perfect_useless_and_noisy_units() -> None:
    rng = np.random.default_rng()
    phones = rng.integers(1, 40, 20_000)
    assert units.pnmi(phones * 3, phones) == pytest.approx(1)
    assert units.pnmi(np.zeros_like(phones), phones) == pytest.approx(0, abs=1e-9)
    half = np.where(rng.random(len(phones)) < 0.5, phones, 0)
    assert 0.4 < units.pnmi(half, phones) < 0.6


def test_k_means_finds_separate_clouds() -> None:
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    middles = 50 * torch.randn(7, 5, generator=generator)
    points = middles[torch.arange(1400) % 7] + torch.randn(1400, 5, generator=generator)
    found = cluster.nearest(points, cluster.k_means(points, 7, steps=20, generator=generator))
    pairs = {(int(a), int(b)) for a, b in zip(found, torch.arange(1400) % 7, strict=True)}
    assert len({b for _, b in pairs}) == 7
    assert len(pairs) <= 8


def sums_of(
    heard: dict[tuple[str, str, str], float], rng: np.random.Generator
) -> dict[targets.Cell, targets._Sums]:
    """Triphones whose frames lie around a mean, ten frames each."""
    found = {}
    for (left, phone, right), mean in heard.items():
        frames = mean + 0.1 * rng.standard_normal((10, 4))
        cell = (align.ID[left], align.ID[phone], align.ID[right])
        found[cell] = targets._Sums(10.0, frames.sum(0), float(np.square(frames).sum()))
    return found


def test_the_tree_splits_where_neighbours_sound_different() -> None:
    """AA sounds different after nasals; the right neighbour and all other phones do not matter."""
    rng = np.random.default_rng()
    heard: dict[tuple[str, str, str], float] = {("sil", p, "sil"): 0.0 for p in align.PHONES}
    for left in ("M", "N", "NG", "T", "K", "S"):
        for right in ("B", "IY"):
            heard[left, "AA", right] = 5.0 if left in ("M", "N", "NG") else 0.0
    made = targets.grow(sums_of(heard, rng), len(align.PHONES) + 1, least=10)
    aa = align.ID["AA"]
    nasal = {int(made.table[align.ID[p], aa, right]) for p in ("M", "N", "NG") for right in range(40)}
    other = {int(made.table[align.ID[p], aa, right]) for p in ("T", "K", "S") for right in range(40)}
    assert len(nasal) == 1
    assert len(other) == 1
    assert nasal != other
    assert all(
        made.phone_of[made.table[:, p, :]].tolist() == np.full((40, 40), p).tolist() for p in range(40)
    )


def test_the_tree_refuses_more_units_than_the_data_tells_apart() -> None:
    heard = {("sil", p, "sil"): 0.0 for p in align.PHONES}
    with pytest.raises(ValueError, match="align more speech"):
        targets.grow(sums_of(heard, np.random.default_rng()), 500, least=10)


def test_units_follow_time() -> None:
    table = np.broadcast_to(np.arange(40)[None, :, None], (40, 40, 40)).astype(np.int64)
    made = targets.Units(table, np.arange(40))
    intervals = [(align.ID["AA"], 0.1), (align.ID["T"], 0.3)]
    found = made.at(intervals, np.array([0.0, 0.05, 0.1, 0.29, 0.31]))
    assert found.tolist() == [align.ID["AA"], align.ID["AA"], align.ID["T"], align.ID["T"], align.SILENCE]


def test_speed_keeps_labels_on_the_sound() -> None:
    """A click stays under the token whose original holds it, at any speed."""
    rng = np.random.default_rng()
    for _ in range(20):
        audio = np.zeros(64_000, np.float32)
        token = int(rng.integers(20, 60))
        audio[token * 640 + 320] = 1
        speed, start = float(rng.uniform(0.85, 1.18)), float(rng.uniform(0, 6_000))
        heard = views.speeded(audio, 48_000, start, speed)
        if not heard.any():
            continue
        at = int(heard.argmax()) // 640
        middle = start + speed * (at + 0.5) * 640
        assert abs(middle - (token * 640 + 320)) <= 320 * speed + 2


def test_views_leave_lengths_and_finiteness() -> None:
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    audio = torch.zeros(4, 12_345)
    audio[1:] = torch.randn(3, 12_345, generator=generator)
    heard = views.degraded(audio.clone(), views.Views(noise=1, room=1), generator)
    assert heard.shape == audio.shape
    assert torch.isfinite(heard).all()
    assert (heard[0] == 0).all()
    banks = views.filter_banks(23, views.Views(warps=5))
    assert banks.shape == (5, 241, 23)
    assert torch.allclose(banks.sum(1), torch.ones(5, 23), atol=1e-5)

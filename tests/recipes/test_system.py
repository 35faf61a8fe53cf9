"""Judging the whole system: loops, what counts as spoken, summaries, and text beside text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from recipes import judges, prose, system

from speechssm.axes import TOKEN_SAMPLES
from speechssm.errors import SpeechSSMError


@pytest.mark.parametrize("period", [1, 2, 4, 5, 10, 20])
def test_a_phrase_three_times_running_is_a_loop(rng: np.random.Generator, period: int) -> None:
    before, behind = rng.integers(0, 500, 37).tolist(), rng.integers(500, 1000, 21).tolist()
    phrase = (rng.permutation(500)[:period]).tolist() * (system.PHRASE // period)
    assert system.loops(before + 3 * phrase + behind)
    assert not system.loops(before + 2 * phrase + [-1] + behind)
    broken = 3 * phrase
    broken[30] = -1
    assert not system.loops(before + broken + behind)


def test_no_loop_in_nothing_or_in_speech(rng: np.random.Generator) -> None:
    assert not system.loops([])
    assert not system.loops(rng.integers(0, 500, 1500).tolist())


def test_tokens_of_silence_are_left_out(rng: np.random.Generator) -> None:
    loud = rng.random(50) < 0.6
    audio = np.repeat(loud, TOKEN_SAMPLES) * rng.standard_normal(50 * TOKEN_SAMPLES) * 0.1
    tokens = np.arange(50)
    assert system.spoken_tokens(tokens, audio.astype(np.float32)) == tokens[loud].tolist()


def judged(number: int, count: int, rng: np.random.Generator, **changes: object) -> dict[str, object]:
    rows = [
        {
            "minute": m + 1, "similarity": 0.8, "dnsmos": 3.0 - 0.01 * m, "silence": 0.1, "loop": False,
            "repetition": float(rng.random()), **changes,
        }
        for m in range(count)
    ]  # fmt: skip
    return {"number": number, "minutes": rows, "said": None}


def test_summary_meets_and_misses_each_bar(rng: np.random.Generator) -> None:
    good = [judged(0, 16, rng), judged(1, 4, rng)]
    figures = system.summary(good)
    assert figures["met"] == {"similarity_worst_minute": True, "dnsmos_lost": True, "bad_minutes": True}
    assert figures["minutes"] == 20
    good[0]["minutes"][9]["similarity"] = 0.5  # the only one that lasts so long
    good[1]["minutes"][3]["dnsmos"] = 2.0
    good[0]["minutes"][0]["loop"] = good[1]["minutes"][1]["loop"] = True
    figures = system.summary(good)
    assert figures["met"] == dict.fromkeys(figures["met"], False)
    assert figures["similarity_worst_minute"] == 0.5
    assert figures["bad_minutes"] == 0.1


def test_an_absent_judge_is_never_a_pass(rng: np.random.Generator) -> None:
    figures = system.summary([judged(0, 4, rng, similarity=None, dnsmos=None)])
    assert figures["met"] == {"similarity_worst_minute": None, "dnsmos_lost": None, "bad_minutes": True}
    assert system.summary([])["met"] == dict.fromkeys(figures["met"])


def test_text_reads_better_than_shuffled_and_than_made_up_words() -> None:
    pages = ["the cat sat on the mat and the dog sat on the rug"] * 3 + [
        "a bird sang in the old tree at dawn"
    ] * 3
    reader = prose.Reader(pages)
    real = reader.of([pages[0]])
    mixed = reader.of(prose.shuffled([pages[0]]))
    odd = reader.of(["zub the flim on grolp"])
    assert real.known == mixed.known == 1.0
    assert real.perplexity < mixed.perplexity
    assert odd.known == pytest.approx(2 / 5)
    assert reader.of(["sat on the mat " * 5]).repetition > 0.5 > real.repetition
    assert np.isnan(reader.of(["", "?"]).perplexity)


def test_real_pages_come_from_the_held_out_book_only(tmp_path: Path) -> None:
    folder = tmp_path / "stories_text"
    folder.mkdir()
    (folder / "alices-adventures.txt").write_text("white rabbit " * 50)
    (folder / "grimm.txt").write_text("brothers and sisters " * 50)
    assert all(set(page.split()) == {"white", "rabbit"} for page in prose.real(tmp_path, 3, 20))
    assert prose.reader(tmp_path).of(["white rabbit"]).known == 0.0


def test_weights_that_cannot_be_fetched_leave_the_judge_absent_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> Path:
        raise SpeechSSMError("no wheel of that name")

    monkeypatch.setattr(judges.voiceprint, "path", refused)
    monkeypatch.setattr(judges.importlib.util, "find_spec", lambda name: None)
    found = judges.opened()
    assert found.get("speaker") is None
    assert found.reason("speaker") == "no wheel of that name"
    assert "asr" not in found.paths

"""No training list touches what is held out; the rule lives in recipes/splits.py alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipes import data, places, splits, targets, teach, texts

VOICES = ["af_heart", "am_adam", "bm_lewis", "af_kore", "bf_emma"]


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature of the data folder with every kind of held-out item in it."""
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / "cache"))
    data.audio.cache_clear()
    root = tmp_path / "data"
    rng = np.random.default_rng()

    def write(path: Path, seconds: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = (rng.standard_normal(int(16_000 * seconds)) * 3000).astype(np.int16)
        soundfile.write(path, samples, 16_000, format="OGG", subtype="OPUS")

    rows = []
    for number in (1, 10, 11, 110, 205, 590):
        for half in "ab":
            stem = f"arctic_{half}{number:04d}_{rng.integers(10**9)}"
            write(root / "kathleen" / f"{stem}.ogg")
            rows.append(f"{stem}\tSentence {number}, {half}.")
    (root / "kathleen" / "transcripts.tsv").write_text("\n".join(rows) + "\n")
    for speaker in (103, 110, 1034, 2010, 27, 1040):
        write(root / "librispeech" / f"{speaker}-1240-0000.ogg")
    lines = []
    for i, voice in enumerate(VOICES * 2):
        book = "alices-adventures-in-wonderland" if i in (0, 7) else "wilhelm-grimm"
        file = f"{book}-{i:03d}.ogg"
        write(root / "stories_speech" / file, 1.5)
        lines.append(json.dumps({"file": file, "voice": voice, "seconds": 1.5, "text": "One two."}))
    (root / "stories.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("lewis-carroll_alices-adventures-in-wonderland_john-tenniel", "wilhelm-grimm"):
        (root / "stories_text").mkdir(exist_ok=True)
        (root / "stories_text" / f"{name}.txt").write_text("It was a story. It went on.\n" * 20)
    folder = places.cache("voices")
    made = [
        {"stem": "rms-000001-wilhelm-grimm", "voice": "rms"},
        {"stem": "rms-000002-alices", "voice": "rms"},
    ]
    for row in made:
        write(folder / f"{row['stem']}.flac")
    (folder / "index.jsonl").write_text(
        "".join(json.dumps({**r, "text": "x", "phones": []}) + "\n" for r in made)
    )
    return root


def forbidden(recording: data.Recording) -> bool:
    """The issue's words, written a second time and differently."""
    if recording.corpus == "librispeech":
        return recording.speaker.endswith("0")
    if recording.corpus == "kathleen":
        return bool(re.match(r"arctic_[ab]\d\d\d0", recording.stem))
    return "alice" in recording.stem or recording.speaker in {"bm_lewis", "af_kore", "am_adam"}


def test_every_recording_is_on_its_side(corpora: Path) -> None:
    everything = data.recordings(corpora)
    assert {r.corpus for r in everything} == {"kathleen", "librispeech", "stories_speech", "synthetic"}
    for recording in everything:
        assert splits.held_out(recording) == forbidden(recording), recording
    assert any(map(forbidden, everything))
    together = [*splits.training(everything), *splits.testing(everything)]
    assert sorted(r.key for r in together) == sorted(r.key for r in everything)


def test_training_lists_of_the_stages_touch_nothing_held_out(corpora: Path) -> None:
    for segment in teach.all_segments(corpora):
        places.write_arrays(teach.features_path(segment), {"h3": np.zeros((3, 512), np.float16)})
    found = targets.training_segments(corpora)
    assert len(found) > 10
    assert not [s.key for s in found if forbidden(s.recording)]
    assert [b.stem for b in texts.books(corpora)] == ["wilhelm-grimm"]
    assert all("alice" in b.stem for b in texts.books(corpora, held_out=True))


def test_real_data_when_it_is_there() -> None:
    root = Path(__file__).parents[2].parent / "shared" / "data"
    if not root.exists():
        pytest.skip("the data folder is not beside the repository")
    everything = data.kathleen(root) + data.librispeech(root) + data.stories_speech(root)
    chosen = splits.training(everything)
    assert not [r.key for r in chosen if forbidden(r)]
    sentences = {r.stem.rsplit("_", 1)[0] for r in chosen if r.corpus == "kathleen"}
    tested = {r.stem.rsplit("_", 1)[0] for r in splits.testing(everything) if r.corpus == "kathleen"}
    assert tested
    assert not sentences & tested


def test_a_held_out_recording_in_a_training_list_is_refused() -> None:
    bad = data.Recording("librispeech", "1040-133433-0000", "1040", Path("x"))
    with pytest.raises(ValueError, match="1040-133433-0000"):
        splits.refuse_held_out([bad])
    with pytest.raises(ValueError, match="held-out rule"):
        splits.held_out(data.Recording("unknown", "a", "b", Path("x")))
    with pytest.raises(ValueError, match="arctic number"):
        splits.held_out(data.Recording("kathleen", "sentence7", "kathleen", Path("x")))


def test_only_one_file_knows_the_rule() -> None:
    """No other recipe names a held-out voice or takes a number modulo ten."""
    for path in (Path(__file__).parents[2] / "recipes").rglob("*.py"):
        if path.name != "splits.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"bm_lewis|af_kore|am_adam|% *10\b", text), path

"""Transcripts of LibriSpeech excerpts (they come without) by Whisper-base, kept as one JSON file.

Runs in an environment that has ``faster-whisper``; it is a judge's tool, so the package itself does not
ask for it. The transcripts are only used to align phones to real speech of many speakers.
"""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from .. import data, places
from .packages import whisper_base


def path() -> Path:
    """File name -> transcript."""
    return places.cache("transcripts") / "librispeech.json"


def load() -> dict[str, str]:
    """The transcripts made so far, by file stem."""
    return dict(json.loads(path().read_text(encoding="utf-8"))) if path().exists() else {}


def run(root: Path, threads: int = 1) -> None:
    """Transcribe what is missing; saved every 20 files."""
    from faster_whisper import WhisperModel

    model = WhisperModel(
        str(whisper_base(places.cache("packages"))),
        compute_type="int8",
        cpu_threads=threads,
        local_files_only=True,
    )
    known = load()
    todo = [r for r in data.librispeech(root) if r.stem not in known]
    for i, recording in enumerate(tqdm(todo, "transcripts", unit="file")):
        audio = data.audio(recording).astype("float32") / 32768.0
        parts, _ = model.transcribe(audio, language="en", beam_size=3, condition_on_previous_text=False)
        known[recording.stem] = " ".join(p.text.strip() for p in parts)
        if i % 20 == 19 or i + 1 == len(todo):
            places.write_json(path(), known)

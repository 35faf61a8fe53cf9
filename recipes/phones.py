"""Stage ``phones``: an alignment of every recording with a text; LibriSpeech gets Whisper's transcript first."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from . import data, places
from .teachers import align, transcribe


def from_flite() -> None:
    """flite printed its own phones while it spoke: keep them in the same place."""
    index = places.cache("voices") / "index.jsonl"
    for line in index.read_text(encoding="utf-8").splitlines() if index.exists() else []:
        row = json.loads(line)
        key = f"synthetic--{row['stem']}"
        if align.load(key) is None:
            align.save(key, [(align.phone_id(p), end) for p, end in row["phones"]])


def run(root: Path, threads: int = 1) -> None:
    """Align what is missing."""
    from_flite()
    real = data.kathleen(root)
    _align(real)
    transcribe.run(root, threads)
    texts = transcribe.load()
    _align(
        [
            data.Recording(r.corpus, r.stem, r.speaker, r.path, texts.get(r.stem))
            for r in data.librispeech(root)
        ]
    )
    _align(data.stories_speech(root))


def _align(recordings: list[data.Recording]) -> None:
    todo = [r for r in recordings if r.text and align.load(r.key) is None]
    aligner = align.Aligner()
    failed = 0
    for recording in tqdm(todo, "phones", unit="recording"):
        found = aligner(data.audio(recording), recording.text or "")
        failed += found is None
        align.save(recording.key, found or [])
    print(f"{len(todo) - failed} recordings aligned, {failed} without a path")

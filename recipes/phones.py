"""Stage ``phones``: an alignment of every recording with a text; LibriSpeech gets Whisper's transcript first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import data, figures, places
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
    summarise(root)


def _align(recordings: list[data.Recording]) -> None:
    todo = [r for r in recordings if r.text and align.load(r.key) is None]
    aligner = align.Aligner()
    failed = 0
    for recording in tqdm(todo, "phones", unit="recording"):
        found = aligner(data.audio(recording), recording.text or "")
        failed += found is None
        align.save(recording.key, found or [])
    print(f"{len(todo) - failed} recordings aligned, {failed} without a path")


def summarise(root: Path) -> None:
    """Log how much is aligned, and draw the mean length of every phone."""
    seconds, counts = np.zeros(len(align.PHONES)), np.zeros(len(align.PHONES))
    aligned = failed = 0
    for recording in data.recordings(root):
        found = align.load(recording.key)
        aligned, failed = aligned + bool(found), failed + (found == [])
        start = 0.0
        for phone, end in found or []:
            seconds[phone] += end - start
            counts[phone] += 1
            start = end
    mean_ms = 1000 * seconds / np.maximum(counts, 1)
    places.Log(align.folder() / "log.jsonl")(
        stage="phones", aligned=aligned, failed=failed, hours=float(seconds.sum() / 3600)
    )
    lengths = dict(zip(align.PHONES, mean_ms.tolist(), strict=True))
    figures.bars(align.folder() / "phones.png", "Mean length of a phone in the alignments", "ms", lengths)

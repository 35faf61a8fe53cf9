"""Stage ``voices``: cheap speech with known phones from flite's permissive voices, over the stories' text.

flite (Debian package, CMU licence) speaks 60 times faster than real time and prints the end of every
phone, so the speech comes with exact phone labels. Speeds vary by utterance.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import SpeechSSMError

from . import data, figures, places, texts

VOICES = ("awb", "rms", "slt", "kal16")
PIECE_WORDS = 28
"""About 10 s."""
SEED = 4


def speak(voice: str, text: str, stretch: float) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """Audio (n) int16 at 16 kHz and (phone, end in seconds) of ``text``."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-psdur"]
        try:
            done = subprocess.run(
                [*command, "-t", text, "-o", str(wav)], check=True, capture_output=True, text=True
            )
        except FileNotFoundError as error:
            raise SpeechSSMError("flite is not installed: apt-get install flite") from error
        audio = data.decode(wav)
    phones = [(p, float(end)) for p, end in (item.rsplit(":", 1) for item in done.stdout.split())]
    return audio, phones


def run(root: Path, hours: float) -> None:
    """Until ``hours`` of speech exist in all, voices taking turns over pieces drawn without replacement."""
    folder = places.cache("voices")
    index = folder / "index.jsonl"
    known = [json.loads(line) for line in index.read_text().splitlines()] if index.exists() else []
    seconds = sum(row["seconds"] for row in known)
    everything = [p for book in texts.books(root) for p in texts.pieces(book, PIECE_WORDS)]
    order = np.random.default_rng(SEED).permutation(len(everything))
    with tqdm(total=hours, initial=seconds / 3600, unit="h") as bar, index.open("a") as out:
        for turn in range(len(known), len(order)):
            if seconds >= hours * 3600:
                break
            piece, voice = everything[order[turn]], VOICES[turn % len(VOICES)]
            stretch = float(np.random.default_rng((SEED, turn)).uniform(0.85, 1.2))
            audio, phones = speak(voice, piece.text, stretch)
            stem = f"{voice}-{turn:06d}-{piece.book[:24]}"
            soundfile.write(folder / f"{stem}.flac", audio, SAMPLE_RATE_HZ)
            row = {"stem": stem, "voice": voice, "seconds": len(audio) / SAMPLE_RATE_HZ, "text": piece.text}
            out.write(json.dumps({**row, "phones": phones}) + "\n")
            seconds += row["seconds"]
            bar.update(row["seconds"] / 3600)
    hours_by_voice: dict[str, float] = dict.fromkeys(VOICES, 0.0)
    for line in index.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        hours_by_voice[row["voice"]] += row["seconds"] / 3600
    places.Log(folder / "log.jsonl")(stage="voices", hours=sum(hours_by_voice.values()), **hours_by_voice)
    figures.bars(folder / "voices.png", "Speech synthesised with known phones", "hours", hours_by_voice)

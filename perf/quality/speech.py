"""Where the speech to be judged comes from: a bundle that speaks, recordings, or LibriSpeech-Long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssm.audio import read_audio
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import SettingsError
from speechssm.runtime.model import Model

Audio = NDArray[np.float32]
Tokens = NDArray[np.int64]

PROMPT_S = 10.0
"""The paper's prompt."""
ENDINGS = (".flac", ".wav", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Speech:
    """``audio`` (n) that goes on from ``prompt`` (n), both 16 kHz, and the tokens (t) it was spoken from.

    ``truth`` is how the prompt really went on, where that is known.
    """

    name: str
    prompt: Audio
    audio: Audio
    tokens: Tokens
    truth: Audio | None = None


def spoken(
    model: Model,
    prompt: Audio,
    seconds: float,
    *,
    name: str,
    schedule: str,
    seed: int = 0,
    truth: Audio | None = None,
) -> Speech:
    """New speech of a bundle, with the tokens its language model said."""
    pieces: list[Audio] = []
    said: list[int] = []
    with model.open(prompt, rate_hz=SAMPLE_RATE_HZ, seed=seed, schedule=schedule) as session:
        for piece in session.stream(seconds):
            pieces.append(piece)
            kept = session.tokens.snapshot()
            # What is not kept any more was seen before: a stream keeps the whole window it reads.
            said += kept["tail"][len(said) - int(kept["start"][0]) :].tolist()
    return Speech(name, prompt, np.concatenate(pieces), np.array(said, np.int64), truth)


def recorded(model: Model, path: Path, seconds: float) -> Speech:
    """A recording as if it had been spoken: its first 10 s are the prompt. Raises AudioError."""
    audio = read_audio(path)
    cut = min(round(PROMPT_S * SAMPLE_RATE_HZ), len(audio) // 2)
    rest = audio[cut : cut + round(seconds * SAMPLE_RATE_HZ)]
    return Speech(path.stem, audio[:cut], rest, model.stages.tokenize(rest), rest)


def recordings(folder: Path) -> list[Path]:
    """Recordings in and below ``folder``, or the file itself, by name. Raises SettingsError when there are none."""
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)
    if not found:
        raise SettingsError(
            f"there is no recording ({', '.join(ENDINGS)}) in {folder}: give a folder that has some"
        )
    return found


def librispeech_long(folder: Path, most: int) -> Iterator[tuple[str, Audio, Audio]]:
    """Names, prompts of 10 s and how they went on, of ``<split>/<speaker>/<chapter>/*.flac``, one a speaker first."""
    by_speaker: dict[str, list[Path]] = {}
    for path in recordings(folder):
        by_speaker.setdefault(path.parent.parent.name, []).append(path)
    chosen = [
        paths[i]
        for i in range(max(map(len, by_speaker.values())))
        for paths in by_speaker.values()
        if i < len(paths)
    ]
    for path in chosen[:most]:
        audio = read_audio(path)
        cut = round(PROMPT_S * SAMPLE_RATE_HZ)
        if len(audio) > 2 * cut:
            yield path.stem, audio[:cut], audio[cut:]

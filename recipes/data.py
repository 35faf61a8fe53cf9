"""Lists of recordings and their 16 kHz audio, decoded once and kept as int16 in the cache.

Long readings are cut into segments of at most 20 s at their quietest moments, so that every item fits
one teacher window (30 s) and no word is cut in two.
"""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import AudioError

from . import places

SEGMENT_SECONDS = 20.0


@dataclass(frozen=True)
class Recording:
    """One audio file. ``text`` is None where no transcript came with it."""

    corpus: str
    stem: str
    speaker: str
    path: Path
    text: str | None = None

    @property
    def key(self) -> str:
        """Unique name of the recording, usable in file names."""
        return f"{self.corpus}--{self.stem}"


@dataclass(frozen=True)
class Segment:
    """``recording`` from sample ``start`` to ``stop``."""

    recording: Recording
    start: int
    stop: int

    @property
    def key(self) -> str:
        """Unique name of the segment."""
        return f"{self.recording.key}--{self.start}"

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.stop - self.start) / SAMPLE_RATE_HZ


def kathleen(data: Path) -> list[Recording]:
    """One real reader: 1 619 short sentences with their text (CC0)."""
    with (data / "kathleen" / "transcripts.tsv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Recording("kathleen", stem, "kathleen", data / "kathleen" / f"{stem}.ogg", text)
        for stem, text in rows
        if (data / "kathleen" / f"{stem}.ogg").exists()
    ]


def librispeech(data: Path) -> list[Recording]:
    """251 real speakers, one utterance each, no transcripts (CC BY 4.0)."""
    files = sorted((data / "librispeech").glob("*.ogg"))
    return [Recording("librispeech", f.stem, f.stem.split("-")[0], f) for f in files]


def stories_speech(data: Path) -> list[Recording]:
    """52 long readings by 27 Kokoro voices, with their text (synthesised for this project)."""
    rows = [json.loads(line) for line in (data / "stories.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        Recording(
            "stories_speech", Path(r["file"]).stem, r["voice"], data / "stories_speech" / r["file"], r["text"]
        )
        for r in rows
    ]


def synthetic() -> list[Recording]:
    """What ``python -m recipes voices`` has synthesised so far with permissive voices (flite, festival)."""
    index = places.cache("voices") / "index.jsonl"
    if not index.exists():
        return []
    rows = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    return [
        Recording("synthetic", r["stem"], r["voice"], index.parent / f"{r['stem']}.flac", r["text"])
        for r in rows
    ]


def recordings(data: Path) -> list[Recording]:
    """Every recording of every corpus."""
    return [*kathleen(data), *librispeech(data), *stories_speech(data), *synthetic()]


def decode(path: Path) -> NDArray[np.int16]:
    """Mono 16 kHz audio of a file as int16 (n). Raises AudioError when it cannot be read."""
    try:
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} cannot be decoded: {error}. Check --data") from error
    mono = audio.mean(axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    return np.clip(np.round(mono * 32767), -32768, 32767).astype(np.int16)


@lru_cache(maxsize=4096)
def audio(recording: Recording) -> NDArray[np.int16]:
    """The recording's audio (n) int16 at 16 kHz, from the cache when it is there; memory-mapped."""
    path = places.cache("audio") / f"{recording.key}.npy"
    if not path.exists():
        samples = decode(recording.path)
        with places.partial(path) as temporary, temporary.open("wb") as out:
            np.save(out, samples, allow_pickle=False)
    loaded: NDArray[np.int16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded


def segments(recording: Recording, seconds: float = SEGMENT_SECONDS) -> list[Segment]:
    """The recording cut into pieces of at most ``seconds`` at the quietest moment of each last third."""
    samples = audio(recording)
    longest = int(seconds * SAMPLE_RATE_HZ)
    cuts = [0]
    while len(samples) - cuts[-1] > longest:
        low, high = cuts[-1] + 2 * longest // 3, cuts[-1] + longest
        hop = SAMPLE_RATE_HZ // 50
        power = (
            np.square(samples[low : low + (high - low) // hop * hop].astype(np.float32))
            .reshape(-1, hop)
            .mean(1)
        )
        smooth = np.convolve(power, np.ones(10), "same")
        # A cut on the token grid keeps teacher frames and tokens aligned with the whole recording.
        cuts.append((low + int(np.argmin(smooth)) * hop) // 640 * 640)
    cuts.append(len(samples))
    return [Segment(recording, a, b) for a, b in itertools.pairwise(cuts)]


def segment_audio(segment: Segment) -> NDArray[np.float32]:
    """The segment's audio (n) float32 in [-1, 1]."""
    return audio(segment.recording)[segment.start : segment.stop].astype(np.float32) / 32768.0

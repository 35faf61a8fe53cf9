"""Phone labels of real speech by PocketSphinx forced alignment (BSD; its model is inside the wheel).

Words missing from its dictionary get a pronunciation from flite's letter-to-sound rules. Labels are
ARPAbet without stress, 39 phones and ``sil``.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ

from .. import places

PHONES = [
    "sil",
    "AA",
    "AE",
    "AH",
    "AO",
    "AW",
    "AY",
    "B",
    "CH",
    "D",
    "DH",
    "EH",
    "ER",
    "EY",
    "F",
    "G",
    "HH",
    "IH",
    "IY",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW",
    "OY",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH",
    "UW",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
]
ID = {phone: i for i, phone in enumerate(PHONES)}
SILENCE = 0
_FRAME_HZ = 100
Interval = tuple[int, float]
"""Phone id and its end in seconds."""


def phone_id(name: str) -> int:
    """Id of a PocketSphinx or flite phone name; noises and pauses are silence."""
    plain = re.sub(r"\d", "", name.upper())
    return ID.get({"AX": "AH", "AXR": "ER"}.get(plain, plain), SILENCE)


def words(text: str) -> list[str]:
    """Lower-case words of ``text``; apostrophes inside a word stay."""
    plain = text.lower().replace("’", "'").replace("‘", " ")
    return [w.strip("'") for w in re.findall(r"[a-z0-9']+", plain) if w.strip("'")]


def pronounce(word: str) -> str:
    """ARPAbet of a word by flite's rules."""
    done = subprocess.run(["flite", "-ps", "-t", word, "none"], check=True, capture_output=True, text=True)
    return " ".join(PHONES[i] for i in map(phone_id, done.stdout.split()) if i != SILENCE)


class Aligner:
    """One PocketSphinx decoder, reused."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self.decoder = Decoder(
            lm=None,
            samprate=SAMPLE_RATE_HZ,
            bestpath=False,
            loglevel="FATAL",
            beam=1e-120,
            wbeam=1e-100,
            pbeam=1e-120,
        )
        self.asked: set[str] = set()

    def __call__(self, audio: NDArray[np.int16], text: str) -> list[Interval] | None:
        """Phones of ``audio`` (n) int16, each with its end in seconds; None when no path survives."""
        found = words(text)
        for word in set(found) - self.asked:
            self.asked.add(word)
            if self.decoder.lookup_word(word) is None:
                self.decoder.add_word(word, pronounce(word), True)
        raw = audio.tobytes()
        try:
            self.decoder.set_align_text(" ".join(found))
            self._pass(raw)
            if self.decoder.hyp() is None:
                return None
            self.decoder.set_alignment()
            self._pass(raw)
            alignment = self.decoder.get_alignment()
        except (RuntimeError, ValueError):
            return None
        if alignment is None:
            return None
        phones = [phone for word in alignment for phone in word]
        return [(phone_id(p.name), (p.start + p.duration) / _FRAME_HZ) for p in phones]

    def _pass(self, raw: bytes) -> None:
        self.decoder.start_utt()
        self.decoder.process_raw(raw, full_utt=True)
        self.decoder.end_utt()


def per_token(intervals: list[Interval], tokens: int, start_seconds: float = 0.0) -> NDArray[np.int16]:
    """The phone at the middle of each token (t) int16; silence after the last interval."""
    ends = np.array([end for _, end in intervals])
    ids = np.array([*(phone for phone, _ in intervals), SILENCE], np.int16)
    middles = start_seconds + (np.arange(tokens) + 0.5) / TOKEN_RATE_HZ
    labels: NDArray[np.int16] = ids[np.searchsorted(ends, middles, side="right")]
    return labels


def folder() -> Path:
    """Where alignments are kept, one JSON file per recording."""
    return places.cache("phones")


def load(key: str) -> list[Interval] | None:
    """The alignment of a recording, or None."""
    path = folder() / f"{key}.json"
    return [(int(p), float(e)) for p, e in json.loads(path.read_text())] if path.exists() else None


def save(key: str, intervals: list[Interval]) -> None:
    """Keep an alignment; an empty list says that alignment failed."""
    places.write_json(folder() / f"{key}.json", intervals)

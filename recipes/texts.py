"""Story text as speakable pieces: sentences grouped to a length, typographic marks made plain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import splits

_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "—": ", ", "–": ", ", "…": ", ", "\u2060": "", "\u00a0": " "}
)
_SENTENCE = re.compile(r"(?<=[.!?])[\"')]*\s+")


@dataclass(frozen=True)
class Piece:
    """Consecutive sentences of one book."""

    book: str
    index: int
    text: str


def books(data: Path, *, held_out: bool = False) -> list[Path]:
    """The story files that may be trained on, or only those that may not."""
    return [
        f for f in sorted((data / "stories_text").glob("*.txt")) if splits.held_out_text(f.name) == held_out
    ]


def pieces(book: Path, words: int) -> list[Piece]:
    """The book in order as pieces of at least ``words`` words (but for the last), whole sentences each."""
    found: list[Piece] = []
    held: list[str] = []
    for paragraph in book.read_text(encoding="utf-8").splitlines():
        for sentence in _SENTENCE.split(paragraph.translate(_PLAIN).strip()):
            held += sentence.split()
            if len(held) >= words:
                found.append(Piece(book.stem, len(found), " ".join(held)))
                held = []
    if held:
        found.append(Piece(book.stem, len(found), " ".join(held)))
    return found

"""Whether a transcript reads like text: known words, perplexity under a word trigram, repetition; beside real
and shuffled text.

The trigram is Kneser-Ney on the story texts that may be trained on, so the yardstick is this repository's own.
A word that those texts do not hold twice is one word, ``<unknown>``. Words are those of the aligner.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssm.perf.quality.signals import repetition

from . import texts
from .language.ngram import KneserNey
from .teachers.align import words

ORDER = 3
LEAST = 2
UNKNOWN = "<unknown>"


@dataclass(frozen=True)
class Figures:
    """Of some text: how many words, the share that is in the vocabulary, perplexity, share of repeated 4-grams."""

    words: int
    known: float
    perplexity: float
    repetition: float


class Reader:
    """Judges text by the vocabulary and the word order of ``pages``, a list of texts."""

    def __init__(self, pages: list[str]) -> None:
        said = [words(page) for page in pages]
        counts = Counter(w for page in said for w in page)
        vocabulary = sorted(w for w, n in counts.items() if n >= LEAST)
        self.ids = {UNKNOWN: 0} | {w: i + 1 for i, w in enumerate(vocabulary)}
        self._model = KneserNey([self._numbers(page) for page in said], len(self.ids), ORDER)

    def of(self, transcripts: list[str]) -> Figures:
        """All transcripts together; NaN figures when there is no word."""
        said = [w for w in map(words, transcripts) if w]
        count = sum(map(len, said))
        if not count:
            return Figures(0, float("nan"), float("nan"), float("nan"))
        nats = np.concatenate([self._model.loss(self._numbers(w)) for w in said])
        return Figures(
            words=count,
            known=sum(w in self.ids for page in said for w in page) / count,
            perplexity=float(np.exp(nats.mean())),
            repetition=float(np.average([repetition(w) for w in said], weights=list(map(len, said)))),
        )

    def _numbers(self, said: list[str]) -> NDArray[np.int64]:
        return np.array([self.ids.get(w, 0) for w in said], np.int64)


def reader(data: Path) -> Reader:
    """Of the stories that may be trained on."""
    return Reader([book.read_text(encoding="utf-8") for book in texts.books(data)])


def real(data: Path, count: int, length: int) -> list[str]:
    """``count`` stretches of ``length`` words of the held-out book, evenly spread."""
    said = [w for book in texts.books(data, held_out=True) for w in words(book.read_text(encoding="utf-8"))]
    starts = np.linspace(0, max(0, len(said) - length), count).astype(int)
    return [" ".join(said[at : at + length]) for at in starts]


def shuffled(pages: list[str], seed: int = 0) -> list[str]:
    """The words of each page in random order."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.permutation(words(page)).tolist()) for page in pages]

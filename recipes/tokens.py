"""Stage ``tokens``: the stories as semantic tokens for the language model, spoken by flite, in reading order.

Books are spoken in stretches of about four minutes, each stretch in one voice at one speed, so that a
training segment of the language model (4 min, paper section 3.2) is one reader throughout. Audio is
not kept. Windows and their joins are those of the paper (30 s windows, 4 s overlap, section 3.4). Real
and Kokoro speech is tokenised too; each file says its corpus, speaker and whether it is held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from speechssm.axes import TOKEN_RATE_HZ

from . import data, figures, judge_tokenizer, places, splits, texts, voices
from .tokenize import tokenize
from .weights import load_tokenizer

STRETCH_WORDS = 600
"""About four minutes."""
PIECE_WORDS = 60
SHARES = {"kal16": 0.5, "rms": 0.2, "slt": 0.15, "awb": 0.15}
"""Share of each voice. kal16 is the plainest and speaks a thousand times faster than real time, the others sixty."""
SEED = 5


@dataclass(frozen=True)
class Stretch:
    """A run of pieces of one book, read by one voice."""

    name: str
    corpus: str
    speaker: str
    text: str
    stretch: float
    held_out: bool


def stretches(root: Path, *, held_out: bool) -> list[Stretch]:
    """The books in reading order, cut into stretches; the voice of each is drawn from its own number."""
    found = []
    for book in texts.books(root, held_out=held_out):
        pieces = texts.pieces(book, STRETCH_WORDS)
        for piece in pieces:
            rng = np.random.default_rng((SEED, piece.index, *map(ord, book.stem[:12])))
            voice = str(rng.choice(list(SHARES), p=list(SHARES.values())))
            speed = float(rng.uniform(0.9, 1.15))
            name = f"{book.stem[:40]}-{piece.index:05d}"
            found.append(Stretch(name, "stories_text", voice, piece.text, speed, held_out))
    return found


def spoken(stretch: Stretch) -> NDArray[np.float32]:
    """The stretch's audio (n) float32, spoken a few sentences at a time."""
    words = stretch.text.split()
    parts = [" ".join(words[i : i + PIECE_WORDS]) for i in range(0, len(words), PIECE_WORDS)]
    audio = [voices.speak(stretch.speaker, part, stretch.stretch)[0] for part in parts]
    joined: NDArray[np.float32] = np.concatenate(audio).astype(np.float32) / 32768.0
    return joined


def folder() -> Path:
    """``index.jsonl`` and one safetensors file per stretch or recording, ``tokens`` (t) int16."""
    return places.cache("tokens")


def run(root: Path, config: dict[str, Any], hours: float) -> None:
    """Tokenise with the best tokenizer: recordings first, then held-out stories, then ``hours`` of the others."""
    graph = judge_tokenizer.session(load_tokenizer(), threads=1)
    index = folder() / "index.jsonl"
    known = {json.loads(line)["name"] for line in index.read_text().splitlines()} if index.exists() else set()

    def note(name: str, row: dict[str, Any], found: NDArray[np.int64]) -> None:
        places.write_arrays(folder() / f"{name}.safetensors", {"tokens": found.astype(np.int16)})
        with index.open("a") as out:
            out.write(json.dumps({"name": name, "tokens": len(found), **row}) + "\n")

    for recording in tqdm(data.recordings(root), "recordings", unit="recording"):
        if recording.corpus != "synthetic" and recording.key not in known:
            found = tokenize(graph, data.audio(recording).astype(np.float32) / 32768.0)
            row = {
                "corpus": recording.corpus,
                "speaker": recording.speaker,
                "held_out": splits.held_out(recording),
            }
            note(recording.key, row, found)
    seconds = 0.0
    todo = stretches(root, held_out=True) + _shuffled(stretches(root, held_out=False))
    with tqdm(total=hours, unit="h") as bar:
        for stretch, audio in _ahead([s for s in todo if s.name not in known]):
            if seconds > hours * 3600:
                break
            found = tokenize(graph, audio)
            row = {"corpus": stretch.corpus, "speaker": stretch.speaker, "held_out": stretch.held_out}
            note(stretch.name, row, found)
            if not stretch.held_out:
                seconds += len(found) / TOKEN_RATE_HZ
                bar.update(len(found) / TOKEN_RATE_HZ / 3600)
    hours: dict[str, float] = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = "held out" if row["held_out"] else row["corpus"]
        hours[name] = hours.get(name, 0.0) + row["tokens"] / TOKEN_RATE_HZ / 3600
    places.Log(folder() / "log.jsonl")(stage="tokens", hours=hours)
    figures.bars(folder() / "tokens.png", "Tokens for the language model", "hours", hours)


def _shuffled(items: list[Stretch]) -> list[Stretch]:
    order = np.random.default_rng(SEED).permutation(len(items))
    return [items[i] for i in order]


def _ahead(items: list[Stretch]) -> Iterator[tuple[Stretch, NDArray[np.float32]]]:
    """Each stretch with its audio; the next one is spoken while this one is tokenised."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(spoken, items[0]) if items else None
        for i, item in enumerate(items):
            assert waiting is not None
            audio = waiting.result()
            waiting = pool.submit(spoken, items[i + 1]) if i + 1 < len(items) else None
            yield item, audio

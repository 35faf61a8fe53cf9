"""Stage ``prepare``: every recording as semantic tokens, codec codes and a voiceprint, kept in the cache.

Training recordings are also read slower and faster by resampling, which moves pitch, formants and tempo
together: each speed of a speaker counts as another speaker, with tokens and codes of its own. What is heard
(tokens and voiceprint, most of the work) and the codes are kept apart, so that another codec costs only
the codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ, TOKEN_SAMPLES
from speechssm.bundle.shapes.codec import CODEC_PRESETS
from speechssm.engines.protocol import Array, Bindings
from speechssm.errors import SpeechSSMError
from speechssm.export.models.codec import Codec
from speechssm.export.models.tokenizer import Tokenizer
from speechssm.runtime.prompt import tokenize
from speechssm.runtime.windows import DEFAULT

from .. import data, places, splits, weights
from ..codec.train import load_best
from . import voiceprint

SPEEDS = (1.0, 0.84, 0.88, 0.92, 0.96, 1.04, 1.09, 1.14, 1.19)
"""Copies of each training recording; only 1.0 of held-out ones."""
WINDOW_SECONDS = DEFAULT.window / TOKEN_RATE_HZ
VOICE_SECONDS = 20.0
"""A voiceprint needs no more of a recording."""
CORPORA = ("kathleen", "librispeech", "stories_speech")
Kind = Literal["heard", "codes"]
KINDS: tuple[Kind, ...] = ("heard", "codes")


@dataclass(frozen=True)
class Encoded:
    """One recording at one speed: ``tokens`` (t), ``codes`` (q, 2t), ``voice`` (256)."""

    recording: data.Recording
    speed: float
    tokens: NDArray[np.int64]
    codes: NDArray[np.int64]
    voice: NDArray[np.float32]

    @property
    def speaker(self) -> tuple[str, str, float]:
        """Who speaks; another speed is another speaker."""
        return self.recording.corpus, self.recording.speaker, self.speed


@dataclass(frozen=True)
class Encoders:
    """What turns audio (n) into tokens (t), codes (q, n/320) and a voiceprint (256)."""

    tokens: Callable[[NDArray[np.float32]], NDArray[np.int64]]
    codes: Callable[[NDArray[np.float32]], NDArray[np.int64]]
    voice: Callable[[NDArray[np.float32]], NDArray[np.float32]]


class AsGraph:
    """A torch module behind the engines' protocol, so that recipes share the runtime's windowing."""

    name, provider = "tokenizer", "torch"

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], device: str) -> None:
        self.model, self.device = model, device

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run on the one input and return the one output."""
        (given,) = inputs.values()
        with torch.inference_mode():
            return [self.model(torch.from_numpy(given).to(self.device)).cpu().numpy()]

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        """Not needed by recipes."""
        raise NotImplementedError

    def run(self, bindings: Bindings) -> None:
        """Not needed by recipes."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to release."""


def encoders(tokenizer: Tokenizer, codec: Codec, voice: voiceprint.Voiceprint, device: str) -> Encoders:
    """Encoders of the trained parts."""
    words, sounds = AsGraph(tokenizer, device), AsGraph(codec.encode, device)
    return Encoders(
        tokens=lambda audio: tokenize(words, audio),
        codes=lambda audio: sounds.call({"audio": audio[None]}, ["codes"])[0][0],
        voice=voice.of,
    )


def path(folder: Path, kind: Kind, recording: data.Recording, speed: float) -> Path:
    """Where one kind of an encoded recording is kept."""
    return folder / kind / f"{recording.key}@{speed:.2f}.safetensors"


def read(recording: data.Recording, speed: float) -> NDArray[np.float32]:
    """The recording ``speed`` times faster, audio (n) of whole tokens."""
    audio = data.audio(recording).astype(np.float32) / 32768.0
    if speed != 1.0:
        # A rate ratio in whole hertz: the copy is to be another voice, not an exact speed.
        audio = soxr.resample(audio, round(SAMPLE_RATE_HZ * speed), SAMPLE_RATE_HZ).astype(np.float32)
    return np.ascontiguousarray(audio[: len(audio) // TOKEN_SAMPLES * TOKEN_SAMPLES])


def encode(pieces: Sequence[NDArray[np.float32]], kind: Kind, with_: Encoders) -> list[dict[str, np.ndarray]]:
    """Recordings of one speaker, each audio (n) -> tokens (t) and voiceprint, or codes (q, 2t), of each.

    They are heard as one: a window of 30 s costs the same for a sentence of 3 s.
    """
    if kind == "codes":
        return [{"codes": with_.codes(audio).astype(np.int16)} for audio in pieces]
    whole = np.concatenate(pieces)
    voice = with_.voice(whole[: int(VOICE_SECONDS * SAMPLE_RATE_HZ)])
    ends = np.cumsum([len(audio) // TOKEN_SAMPLES for audio in pieces])
    tokens = np.split(with_.tokens(whole).astype(np.int32), ends[:-1])
    return [{"tokens": np.ascontiguousarray(part), "voice": voice} for part in tokens]


def together(todo: Sequence[tuple[data.Recording, float]]) -> Iterator[list[tuple[data.Recording, float]]]:
    """``todo`` in runs of one speaker at one speed that fill a window at most, or that are one long recording."""
    for _, same in groupby(todo, key=lambda pair: (pair[0].corpus, pair[0].speaker, pair[1])):
        some: list[tuple[data.Recording, float]] = []
        seconds = 0.0
        for recording, speed in same:
            more = len(data.audio(recording)) / SAMPLE_RATE_HZ / speed
            if some and seconds + more > WINDOW_SECONDS:
                yield some
                some, seconds = [], 0.0
            some.append((recording, speed))
            seconds += more
        yield some


def wanted(recordings: Iterable[data.Recording]) -> list[tuple[data.Recording, float]]:
    """Every recording and speed to encode."""
    chosen = [r for r in recordings if r.corpus in CORPORA]
    return [(r, s) for s in SPEEDS for r in chosen if s == 1.0 or not splits.held_out(r)]


def run(
    recordings: Sequence[data.Recording],
    with_: Encoders,
    folder: Path | None = None,
    kinds: Sequence[Kind] = KINDS,
) -> int:
    """Encode what is missing; interrupting and starting again loses nothing. Returns how many files were made."""
    folder = folder or places.cache("acoustic", "prepared")
    made = 0
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        todo = [(r, s) for r, s in wanted(recordings) if not path(folder, kind, r, s).exists()]
        with tqdm(total=len(todo), desc=f"prepare {kind}", unit="recording") as bar:
            for some in together(todo):
                found = encode([read(*pair) for pair in some], kind, with_)
                for (recording, speed), arrays in zip(some, found, strict=True):
                    places.write_arrays(path(folder, kind, recording, speed), arrays)
                bar.update(len(some))
        made += len(todo)
    return made


def load(
    recordings: Iterable[data.Recording], speeds: Sequence[float] = SPEEDS, folder: Path | None = None
) -> list[Encoded]:
    """What is prepared of ``recordings`` at ``speeds``."""
    folder = folder or places.cache("acoustic", "prepared")
    found = []
    for recording in recordings:
        for speed in speeds:
            heard, codes = (path(folder, kind, recording, speed) for kind in KINDS)
            if heard.exists() and codes.exists():
                a, b = places.load_arrays(heard), places.load_arrays(codes)
                tokens, coded = a["tokens"].astype(np.int64), b["codes"].astype(np.int64)
                found.append(Encoded(recording, speed, tokens, coded, a["voice"]))
    return found


def held_out(root: Path, folder: Path | None = None) -> list[Encoded]:
    """What is prepared of the recordings no part was trained on, at their own speed."""
    testing = [r for r in splits.testing(data.recordings(root)) if r.corpus in CORPORA]
    return load(testing, (1.0,), folder)


def same_source(folder: Path, kinds: Sequence[Kind] = KINDS) -> None:
    """Note which tokenizer and codec ``folder`` is made with, or raise SpeechSSMError if others made it.

    Tokens and codes mean nothing to weights trained later, and nothing in a file would show it. Of the codec
    only encoder and codebooks count: a better decoder speaks the same codes.
    """
    makers: dict[Kind, tuple[str, tuple[str, ...]]] = {
        "heard": ("tokenizer", ("",)),
        "codes": ("codec", ("encoder.", "codebooks")),
    }
    for kind in kinds:
        part, prefixes = makers[kind]
        noted, digest = folder / kind / "source.json", _digest(weights.best(part).parameters, prefixes)
        if not noted.exists():
            noted.parent.mkdir(parents=True, exist_ok=True)
            places.write_json(noted, {part: digest})
        elif places.read_json(noted)[part] != digest:
            raise SpeechSSMError(
                f"the {part} changed since {noted.parent} was prepared: delete that folder, prepare again"
                " and train anew"
            )


def _digest(parameters: Mapping[str, torch.Tensor], prefixes: tuple[str, ...]) -> str:
    """sha256 of the tensors whose names begin with one of ``prefixes``."""
    digest = hashlib.sha256()
    for name, value in sorted(parameters.items()):
        if name.startswith(prefixes):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def prepare(root: Path, device: str, kinds: Sequence[Kind] = KINDS) -> None:
    """The stage as the command line runs it, with the trained tokenizer and codec."""
    tokenizer = weights.load_tokenizer().to(device)
    codec = load_best().to(device) if "codes" in kinds else Codec(CODEC_PRESETS["tiny"])
    same_source(places.cache("acoustic", "prepared"), kinds)
    made = run(
        data.recordings(root), encoders(tokenizer, codec, voiceprint.load(device), device), kinds=kinds
    )
    print(f"{made} files prepared")

"""Stage ``prepare``: every recording as semantic tokens, codec codes and a voiceprint, kept in the cache.

Training recordings are also read slower and faster by resampling, which moves pitch, formants and tempo
together: each speed of a speaker counts as another speaker, with tokens and codes of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.bundle.reader import sha256
from speechssm.bundle.shapes import TokenizerShape
from speechssm.engines.protocol import Array, Bindings
from speechssm.errors import SpeechSSMError
from speechssm.export.models.codec import Codec
from speechssm.export.models.tokenizer import Tokenizer
from speechssm.runtime.prompt import tokenize

from .. import data, places, splits
from ..codec.train import load_best
from . import voiceprint

SPEEDS = (1.0, 0.84, 0.92, 1.09, 1.19)
"""Copies of each training recording; only 1.0 of held-out ones."""
VOICE_SECONDS = 20.0
"""A voiceprint needs no more of a recording."""
CORPORA = ("kathleen", "librispeech", "stories_speech")


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


def load_tokenizer() -> Tokenizer:
    """The best tokenizer: trained here, or else the committed one. Raises FileNotFoundError."""
    weights = places.best("tokenizer")
    described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    model = Tokenizer(TokenizerShape.model_validate(described["shape"]))
    model.load_state_dict({k: v.float() for k, v in places.load_tensors(weights).items()})
    return model.eval()


def path(folder: Path, recording: data.Recording, speed: float) -> Path:
    """Where an encoded recording is kept."""
    return folder / f"{recording.key}@{speed:.2f}.safetensors"


def encode(audio: NDArray[np.float32], speed: float, with_: Encoders) -> dict[str, np.ndarray]:
    """audio (n) read ``speed`` times faster -> tokens (t), codes (q, 2t), voiceprint; whole tokens only."""
    if speed != 1.0:
        # A rate ratio in whole hertz: the copy is to be another voice, not an exact speed.
        audio = soxr.resample(audio, round(SAMPLE_RATE_HZ * speed), SAMPLE_RATE_HZ).astype(np.float32)
    whole = len(audio) // TOKEN_SAMPLES
    audio = np.ascontiguousarray(audio[: whole * TOKEN_SAMPLES])
    tokens, codes = with_.tokens(audio), with_.codes(audio)
    assert tokens.shape == (whole,)
    assert codes.shape[1] == whole * TOKEN_FRAMES
    voice = with_.voice(audio[: int(VOICE_SECONDS * SAMPLE_RATE_HZ)])
    return {"tokens": tokens.astype(np.int32), "codes": codes.astype(np.int16), "voice": voice}


def wanted(recordings: Iterable[data.Recording]) -> list[tuple[data.Recording, float]]:
    """Every recording and speed to encode."""
    chosen = [r for r in recordings if r.corpus in CORPORA]
    return [(r, s) for s in SPEEDS for r in chosen if s == 1.0 or not splits.held_out(r)]


def run(recordings: Sequence[data.Recording], with_: Encoders, folder: Path | None = None) -> int:
    """Encode what is missing; interrupting and starting again loses nothing. Returns how many were made."""
    folder = folder or places.cache("acoustic", "prepared")
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(r, s) for r, s in wanted(recordings) if not path(folder, r, s).exists()]
    for recording, speed in tqdm(todo, "prepare", unit="recording"):
        audio = data.audio(recording).astype(np.float32) / 32768.0
        places.write_arrays(path(folder, recording, speed), encode(audio, speed, with_))
    return len(todo)


def load(
    recordings: Iterable[data.Recording], speeds: Sequence[float] = SPEEDS, folder: Path | None = None
) -> list[Encoded]:
    """What is prepared of ``recordings`` at ``speeds``."""
    folder = folder or places.cache("acoustic", "prepared")
    found = []
    for recording in recordings:
        for speed in speeds:
            file = path(folder, recording, speed)
            if file.exists():
                a = places.load_arrays(file)
                tokens, codes = a["tokens"].astype(np.int64), a["codes"].astype(np.int64)
                found.append(Encoded(recording, speed, tokens, codes, a["voice"]))
    return found


def same_source(folder: Path) -> None:
    """Note which tokenizer and codec ``folder`` is made with, or raise SpeechSSMError if others made it.

    Tokens and codes mean nothing to weights trained later, and nothing in a file would show it.
    """
    parts = {part: sha256(places.best(part)) for part in ("tokenizer", "codec")}
    noted = folder / "source.json"
    if not noted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        places.write_json(noted, parts)
        return
    before = json.loads(noted.read_text(encoding="utf-8"))
    changed = [part for part, digest in parts.items() if digest != before[part]]
    if changed:
        raise SpeechSSMError(
            f"the {' and the '.join(changed)} changed since {folder} was prepared: delete that folder, prepare again"
            " and train anew"
        )


def prepare(root: Path, device: str) -> None:
    """The stage as the command line runs it, with the trained tokenizer and codec."""
    tokenizer, codec = load_tokenizer().to(device), load_best().eval().to(device)
    same_source(places.cache("acoustic", "prepared"))
    made = run(data.recordings(root), encoders(tokenizer, codec, voiceprint.load(device), device))
    print(f"{made} recordings prepared")

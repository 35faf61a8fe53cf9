"""How good decoded speech is: PESQ and STOI from their public packages, and the training distance.

``pesq`` (ITU-T P.862.2 wide band) and ``pystoi`` belong to the ``recipes`` extra. Without them the
latest weights are kept, and the table says that no bar was judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from speechssm.axes import FRAME_SAMPLES, SAMPLE_RATE_HZ
from speechssm.bundle.shapes.codec import CodecShape
from speechssm.export.models.codec import Codec

from .. import data
from .losses import reconstruction

Samples = NDArray[np.float32]
PIECE_SECONDS = 5.0


def scorers() -> dict[str, Callable[[Samples, Samples], float]]:
    """Scores of (real, made), both (n) float32 at 16 kHz; empty when the packages are not installed."""
    try:
        from pesq import PesqError, pesq  # type: ignore[import-not-found]
        from pystoi import stoi  # type: ignore[import-not-found]
    except ImportError:
        return {}

    def pesq_wb(real: Samples, made: Samples) -> float:
        score = float(pesq(SAMPLE_RATE_HZ, real, made, "wb", on_error=PesqError.RETURN_VALUES))
        return score if score > 0 else float("nan")  # -1: no speech was found

    def stoi_plain(real: Samples, made: Samples) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = float(stoi(real, made, SAMPLE_RATE_HZ))
        return score if score > 1e-4 else float("nan")  # 1e-5: too little speech

    return {"pesq_wb": pesq_wb, "stoi": stoi_plain}


def whole_frames(audio: Samples) -> Samples:
    """audio (n) cut to a whole number of frames."""
    return audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES]


@torch.no_grad()
def resynthesize(model: Codec, audio: Samples, levels: int | None = None, quantize: bool = True) -> Samples:
    """audio (n), whole frames -> decoded (n) from the first ``levels`` (default: all), or unquantized."""
    latents = model.encoder(torch.from_numpy(audio)[None])
    if quantize:
        latents = model.embed(model.quantize(latents)[:, :levels])
    made, _ = model.decoder(latents)
    samples: Samples = made[0].numpy()
    return samples


def score(real: Samples, made: Samples) -> dict[str, float]:
    """All scores of one pair; the first 60 ms, where a stream fades in, count too."""
    figures = {name: scorer(real, made) for name, scorer in scorers().items()}
    _, parts = reconstruction(torch.from_numpy(made)[None], torch.from_numpy(real)[None])
    figures["mel"] = float(parts["mel"])
    return figures


def mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of every score over the pairs that have it."""
    return {k: float(np.nanmean([f[k] for f in figures])) for k in figures[0]}


class Judge:
    """Chooses checkpoints on a few validation recordings: of the training corpora, but never cropped."""

    def __init__(self, recordings: Sequence[data.Recording], shape: CodecShape, most: int = 24) -> None:
        real = [r for r in recordings if r.corpus != "stories_speech"]
        pieces = [data.audio(r)[: int(PIECE_SECONDS * SAMPLE_RATE_HZ)] for r in real[:most]]
        self.pieces = [whole_frames(p.astype(np.float32) / 32768.0) for p in pieces]
        self.shape = shape

    def __call__(self, model: Codec, quantize: bool) -> dict[str, float]:
        """Mean scores, and ``score`` to choose by: 0 without the packages, so that the latest weights stay."""
        pairs = [(p, resynthesize(model, p, quantize=quantize)) for p in self.pieces]
        figures = mean([score(real, made) for real, made in pairs])
        figures["score"] = figures["pesq_wb"] + 2 * figures["stoi"] if "stoi" in figures else 0.0
        return figures

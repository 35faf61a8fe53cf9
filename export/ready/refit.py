"""A quantizer of another shape for a codec whose encoder and decoder stay: residual k-means over a folder of speech.

Lyra's own quantizer has 46 levels of 16 codes; the paper's tokens have 12 of 1024 at the same rate. Level by
level, k-means finds the centres of what the levels before left over. Only the codebooks change.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechssm.audio import read_audio
from speechssm.axes import FRAME_SAMPLES
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import AudioError, ExportError

from ..k_means import k_means, nearest
from ..package import write_graph, write_parts
from .lyra import PART, Lyra, build_encode

STEPS = 12
"""Lloyd's steps a level."""
FRAMES_PER_CODE = 20
"""Fewest frames of speech for each code of a level; fewer and codes describe single frames."""
MAX_FRAMES = 400_000
"""Most frames that are kept (2.2 h); longer folders are thinned out evenly."""
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".caf", ".w64")


@dataclass(frozen=True)
class Refit:
    """New codebooks (q,c,latent), the frames they were fitted to, and the share of power left after each level."""

    codebooks: np.ndarray
    frames: int
    left: tuple[float, ...]


def refit(lyra: Lyra, folder: Path, levels: int, codes: int, *, seed: int = 0, threads: int = 0) -> Refit:
    """Fit ``levels`` (q) codebooks of ``codes`` (c) to the recordings in ``folder`` and below.

    Raises ExportError when the folder holds no recording that can be read, or too little speech.
    """
    if levels < 1 or codes < 2:
        raise ExportError(
            f"{levels} levels of {codes} codes are no quantizer: give at least 1 level of 2 codes"
        )
    latents = torch.from_numpy(_latents(lyra, folder, threads))
    if len(latents) < FRAMES_PER_CODE * codes:
        raise ExportError(
            f"{folder} holds {len(latents) / 50:.0f} s of speech: {codes} codes a level need at least "
            f"{FRAMES_PER_CODE * codes / 50:.0f} s"
        )
    generator = torch.Generator().manual_seed(seed)
    power, residual = latents.square().sum(1).mean(), latents
    books, left = [], []
    for _ in tqdm(range(levels), desc="codebooks", disable=None):
        book = k_means(residual, codes, steps=STEPS, generator=generator)
        residual = residual - book[nearest(residual, book)]
        books.append(book.numpy())
        left.append(float(residual.square().sum(1).mean() / power))
    return Refit(np.stack(books), len(latents), tuple(left))


def _latents(lyra: Lyra, folder: Path, threads: int) -> np.ndarray:
    """Encoder output (frames, latent) of every recording, each from silence."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ExportError(f"{folder} holds no recording ({', '.join(SUFFIXES)}): give a folder of speech")
    found, refused = [], ""
    with tempfile.TemporaryDirectory(prefix="speechssm-refit-") as name:
        work = Path(name)
        builder = build_encode(lyra.encoder, lyra.codebooks.shape, latent=True)
        write_parts(work, {"codec_encode": builder}, {PART: lyra.encoder.weights("E.")})
        entry = write_graph(work, "codec_encode", builder)
        graph = OrtGraph("codec_encode", work / entry.file, entry, OrtOptions(threads=threads))
        for path in tqdm(paths, desc="recordings", disable=None):
            try:
                audio = read_audio(path)
            except AudioError as error:
                refused = refused or str(error)
                continue
            whole = audio[None, : len(audio) // FRAME_SAMPLES * FRAME_SAMPLES]
            found.append(graph.call({"audio": np.ascontiguousarray(whole)}, ["latent"])[0][0])
        graph.close()
    if not found:
        raise ExportError(f"no recording in {folder} can be read; the first: {refused}")
    latents = np.concatenate(found)
    return latents[:: -(-len(latents) // MAX_FRAMES)]

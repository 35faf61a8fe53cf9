"""What a ready graph computes, held against the contract before the bundle gets its name.

Types and axes were compared when the file was read. Here the bundle's own graph runs as the runtime will
run it: on windows of 30 s, on the shortest and the longest acoustic bucket, alone and among rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from speechssm.axes import TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.bundle.manifest import GraphEntry, Windows
from speechssm.bundle.shapes import ReadyAcousticShape, ReadyTokenizerShape, Shape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import BundleError, EngineError, ExportError

ALIKE = 1e-3
"""Largest difference of a row's confidences alone and among others."""


def try_ready(folder: Path, graphs: dict[str, GraphEntry], shapes: Mapping[str, Shape], threads: int) -> None:
    """Run the ready graphs among ``graphs``. Raises ExportError naming what a graph gave and what was expected."""
    for name, shape in shapes.items():
        if not isinstance(shape, ReadyTokenizerShape | ReadyAcousticShape):
            continue
        entry = graphs[name]
        try:
            graph = OrtGraph(name, folder / entry.file, entry, OrtOptions(threads=threads))
            try:
                if isinstance(shape, ReadyTokenizerShape):
                    _tokenizer(graph, shape)
                else:
                    _acoustic(graph, shape)
            finally:
                graph.close()
        except (BundleError, EngineError) as error:
            raise ExportError(f"the ready {name} cannot be used: {error}") from error


def _tokenizer(graph: OrtGraph, shape: ReadyTokenizerShape) -> None:
    window = Windows().window_tokens
    samples = window * TOKEN_SAMPLES
    rng = np.random.default_rng(0)
    time = np.arange(samples) / 16_000
    voiced = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 20))
    audio = (0.1 * voiced * (np.sin(2 * np.pi * 3 * time) > 0) + 0.01 * rng.standard_normal(samples))[None]
    rows = 1 if graph.entry.inputs[0].axes[0] == 1 else 2
    batch = np.concatenate([audio, audio[:, ::-1]])[:rows].astype(np.float32)
    (tokens,) = graph.call({"audio": batch}, ["tokens"])
    if tokens.shape != (rows, window):
        raise ExportError(
            f"the ready tokenizer gives {tokens.shape[1]} tokens for {window * 40 / 1000:g} s, expected {window}: "
            "tokens of 40 ms (25 Hz)"
        )
    _in_range("tokenizer", "token", tokens, shape.vocab)
    for row in range(rows):
        (alone,) = graph.call({"audio": np.ascontiguousarray(batch[row : row + 1])}, ["tokens"])
        _same_codes("tokenizer", tokens[row], alone[0])


def _acoustic(graph: OrtGraph, shape: ReadyAcousticShape) -> None:
    rng = np.random.default_rng(0)
    buckets = Windows().buckets
    for bucket in (buckets[0], buckets[-1]):
        t, frames = bucket, bucket * TOKEN_FRAMES
        prompt = shape.prompt_tokens * TOKEN_FRAMES
        known = np.zeros((2, shape.levels, frames), np.bool_)
        for level in {0, shape.levels - 1}:
            known[:, :level] = True
            inputs: dict[str, np.ndarray] = {
                "keys": rng.integers(0, shape.vocab, (2, shape.prompt_tokens)),
                "values": rng.integers(0, shape.codes, (2, shape.levels, prompt)),
                "voice": np.zeros((2, 1), np.float32),
                "tokens": rng.integers(0, shape.vocab, (2, t)),
                "codes": rng.integers(0, shape.codes, known.shape),
                "known": known,
                "noise": rng.random((2, frames), np.float32),
            }
            fixed: dict[str, np.ndarray] = {
                "level": np.array(level, np.int64),
                "temperature": np.array(1, np.float32),
            }
            codes, confidence = graph.call({**inputs, **fixed}, ["codes_out", "confidence"])
            if codes.shape != (2, frames) or confidence.shape != (2, frames):
                raise ExportError(
                    f"the ready acoustic stage gives codes {codes.shape} and confidences {confidence.shape} for "
                    f"{t} tokens behind the prompt's, expected (2, {frames}): two frames a token"
                )
            _in_range("acoustic stage", "code", codes, shape.codes)
            if not np.isfinite(confidence).all():
                raise ExportError("the ready acoustic stage gives a confidence that is not finite")
            one = {name: np.ascontiguousarray(array[1:]) for name, array in inputs.items()}
            alone, sure = graph.call({**one, **fixed}, ["codes_out", "confidence"])
            _same_codes("acoustic stage", codes[1], alone[0])
            if np.abs(sure[0] - confidence[1]).max() > ALIKE:
                raise ExportError(
                    "the ready acoustic stage gives a row other confidences among others than alone: rows of a "
                    "batch must not depend on each other"
                )


def _in_range(part: str, what: str, values: np.ndarray, limit: int) -> None:
    if values.min() < 0 or values.max() >= limit:
        raise ExportError(
            f"the ready {part} gives a {what} {int(values.max() if values.min() >= 0 else values.min())}, expected "
            f"0 to {limit - 1}"
        )


def _same_codes(part: str, among: np.ndarray, alone: np.ndarray) -> None:
    """Equal but for ties that rounding decides: at most one in a hundred."""
    if (among != alone).mean() > 0.01:
        raise ExportError(
            f"the ready {part} gives a row other results among others than alone: rows of a batch must not depend "
            "on each other, or the first axis must be 1"
        )

"""Stage ``storages``: what each storage costs the voice's language model, on tokens of held-out real speech.

The tokens are those that ``acoustic prepare`` heard of recordings in ``splits.testing``: readers, sentences and
voices no part was trained on. Figures as ``speechssm export --quantize`` prints them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from speechssm.bundle.shapes import LMShape
from speechssm.export.tradeoff import compare_storages, table

from . import weights
from .acoustic import prepare

LENGTH = 512
"""Tokens of a row, 20 s: twice the shipped model's attention window."""


def held_out_tokens(root: Path) -> np.ndarray:
    """Held-out speech laid end to end and cut into rows: tokens (b, LENGTH). Raises FileNotFoundError without any."""
    known = prepare.held_out(root)
    said = np.concatenate([item.tokens for item in known]) if known else np.zeros(0, np.int64)
    if len(said) < LENGTH:
        raise FileNotFoundError(
            "no held-out speech is encoded yet: run 'python -m recipes.acoustic prepare' first"
        )
    return said[: len(said) // LENGTH * LENGTH].reshape(-1, LENGTH)


def run(root: Path, threads: int = 1) -> str:
    """Print the table of storages and rings, and return it."""
    found = weights.best("language")
    shape = weights.shape("language", found.about)
    assert isinstance(shape, LMShape)
    parameters = {name: value.numpy() for name, value in found.parameters.items()}
    tokens = held_out_tokens(root)
    with tempfile.TemporaryDirectory() as folder:
        costs = compare_storages(shape, parameters, Path(folder), tokens=tokens, threads=threads)
    text = table(costs, f"{tokens.size} tokens of held-out speech")
    print(text)
    return text

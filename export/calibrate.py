"""Activation ranges of a language model: the largest magnitude that every product reads, over sampled tokens."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError

from .graphs.lm import build_observed_step
from .graphs.lm_weights import griffin_weights
from .models.griffin import lm_state
from .models.transformer import at_capacity
from .package import write_graph, write_parts

STEPS, LARGE_STEPS, LARGE_PARAMETERS = 256, 32, 50_000_000
"""Sampled tokens of a row, and of a row of a model above so many parameters."""
ROWS = 4

Parameters = Mapping[str, np.ndarray]


def activation_ranges(
    shape: LMShape, parameters: Parameters, work: Path, *, threads: int = 0, seed: int = 0
) -> dict[str, float]:
    """Largest magnitude by weight name (``L00.mlp.up.weight``, ``head``), in a temporary folder under ``work``.

    Tokens are the float32 model's own samples at temperature 1. Raises ExportError when they are not finite.
    """
    shape = at_capacity(shape, STEPS).model_copy(update={"ring": "float32"})
    steps = STEPS if shape.parameters <= LARGE_PARAMETERS else LARGE_STEPS
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(dir=work, prefix=".calibrate.") as name:
        folder = Path(name)
        builder, outputs = build_observed_step(shape)
        write_parts(folder, {"lm_step": builder}, {"lm": griffin_weights(shape, parameters)})
        entry = write_graph(folder, "lm_step", builder, lm_state(shape))
        graph = OrtGraph("lm_step", folder / entry.file, entry, OrtOptions(threads=threads))
        names = sorted(set(outputs.values()))
        largest = dict.fromkeys(names, 0.0)
        state = {s.name: np.zeros((ROWS, *s.shape), s.dtype) for s in lm_state(shape)}
        token = rng.integers(0, shape.vocab, ROWS)
        settings = {
            "active": np.ones(ROWS, np.bool_),
            "temperature": np.ones(ROWS, np.float32),
            "top_k": np.zeros(ROWS, np.int64),
            "top_p": np.ones(ROWS, np.float32),
        }
        for _ in range(steps):
            inputs = {"token": token, **settings, "uniform": rng.random(ROWS, np.float32)}
            inputs |= {f"in_{k}": v for k, v in state.items()}
            token, *rest = graph.call(inputs, ["token_out", *names, *(f"out_{k}" for k in state)])
            for output, value in zip(names, rest, strict=False):
                largest[output] = max(largest[output], float(value))
            state = dict(zip(state, rest[len(names) :], strict=True))
        graph.close()
    ranges = {weight: largest[output] for weight, output in outputs.items()}
    for weight, found in ranges.items():
        if not math.isfinite(found):
            raise ExportError(f"what {weight} is multiplied with is not finite: the weights are damaged")
    return ranges

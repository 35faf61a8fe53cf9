"""Operations counted in a graph are those of its shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechssm.bundle import open_bundle
from speechssm.bundle.shapes import LMShape
from speechssm.perf.operations import count_operations
from speechssm.perf.stages import _zeros


def test_a_step_multiplies_what_the_cost_model_says(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    shape: LMShape = bundle.manifest.lm.shape
    path, entry = bundle.graph("lm_step")
    for rows in (1, 5):
        counted = count_operations(path, _zeros(entry, {"b": rows}))
        # The graph multiplies with the whole ring whatever is in it, every head with every key/value head's columns
        # so that the ring is read where it lies; the token itself is a sum, not a product.
        each = 4 * shape.blocks.count("attention") * shape.heads * shape.head_dim
        assert counted.flops == rows * (
            shape.step_flops(shape.window) - each + (shape.kv_heads - 1) * shape.window * each
        )
        assert counted.weight_bytes == 4 * shape.matrix_parameters


def test_loops_count_as_often_as_they_run(tiny_bundle: Path) -> None:
    path, entry = open_bundle(tiny_bundle).graph("lm_chunk")
    found = []
    for tokens in (3, 6):
        inputs = _zeros(entry, {"b": 1, "t": tokens})
        inputs["lengths"][:] = tokens
        found.append(count_operations(path, inputs).flops)
    assert found[1] == 2 * found[0] > 0


def test_convolutions_are_counted(tiny_bundle: Path) -> None:
    path, _ = open_bundle(tiny_bundle).graph("tokenizer")
    one, two = (
        count_operations(path, {"audio": np.zeros((rows, 16_000), np.float32)}).by_operator["Conv"]
        for rows in (1, 2)
    )
    assert two == 2 * one > 0

"""From reference models to a bundle on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnx import TensorProto

import speechssm
from speechssm.bundle.manifest import (
    AcousticPart,
    CodecPart,
    FileEntry,
    GraphEntry,
    LMPart,
    Manifest,
    TokenizerPart,
    Windows,
)
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError

from .graphs.builder import OPSET
from .graphs.sampler import K_MAX
from .models.griffin import lm_state
from .package import new_folder, part_file, write_graph, write_manifest, write_parts
from .parts import PARTS, AnyShape, seeded_model
from .presets import PRESETS, Preset

Storage = Literal["float32", "float16", "bfloat16"]
STORED = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
LRU_MARGIN = 100.0
"""The watchdog's limit over the largest state the exporter saw."""
_PART_ENTRIES: dict[str, Any] = {"tokenizer": TokenizerPart, "acoustic": AcousticPart, "codec": CodecPart}


def export_preset(
    name: str, target: Path, *, seed: int = 0, storage: Storage = "float32", overwrite: bool = False
) -> Manifest:
    """Write a bundle of preset ``name`` with seeded random weights: it runs, and sounds like noise.

    Raises ExportError for an unknown preset, or as :func:`export_models` does.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise ExportError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    shapes = preset_shapes(preset)
    models = {part: seeded_model(part, shape, seed) for part, shape in shapes.items()}
    return export_models(
        f"{name}-seed{seed}",
        shapes,
        models,
        target,
        about=f"{preset.about}; random weights of seed {seed}",
        seeded=True,
        storage=storage,
        overwrite=overwrite,
    )


def preset_shapes(preset: Preset) -> dict[str, AnyShape]:
    """The shapes of the parts a preset has, by part name."""
    found = {part: getattr(preset, part) for part in PARTS}
    return {part: shape for part, shape in found.items() if shape is not None}


def export_models(
    name: str,
    shapes: Mapping[str, AnyShape],
    models: Mapping[str, torch.nn.Module],
    target: Path,
    *,
    about: str,
    seeded: bool = False,
    storage: Storage = "float32",
    licences: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle of the given reference models.

    ``storage`` is how weight matrices lie on disk; graphs widen them to float32 when they are loaded.
    Raises ExportError when the target exists, a weight is missing or not finite, or the disk fails.
    """
    stored = STORED[storage]
    lm = shapes.get("lm")
    if not isinstance(lm, LMShape):
        raise ExportError("a bundle needs a language model: give at least the part 'lm'")
    with new_folder(Path(target), overwrite=overwrite) as folder:
        builders = {
            graph: build(shapes[part], stored)
            for part in shapes
            for graph, (build, _) in PARTS[part].graphs.items()
        }
        with torch.no_grad():
            write_parts(folder, builders, {part: PARTS[part].weights(models[part]) for part in shapes})
        graphs = {
            graph: write_graph(folder, graph, builders[graph], state(shapes[part]))
            for part in shapes
            for graph, (_, state) in PARTS[part].graphs.items()
        }
        limit = LRU_MARGIN * largest_lru(folder, graphs["lm_chunk"], lm)

        def manifest(files: dict[str, FileEntry]) -> Manifest:
            lm_part = LMPart(shape=lm, storage=storage, k_max=min(K_MAX, lm.vocab), lru_limit=limit)
            others = {
                part: entry(shape=shapes[part], storage=storage)
                for part, entry in _PART_ENTRIES.items()
                if part in shapes
            }
            return Manifest(
                name=name,
                about=about,
                seeded=seeded,
                exporter=f"speechssm {speechssm.__version__}",
                opset=OPSET,
                windows=Windows(),
                lm=lm_part,
                graphs=graphs,
                files=files,
                licences=licences,
                **others,
            )

        return write_manifest(folder, manifest)


def largest_lru(
    folder: Path, entry: GraphEntry, shape: LMShape, *, steps: int = 1024, rows: int = 4
) -> float:
    """Largest |lru| over a rollout of random tokens, which the manifest's ``lru_limit`` is set from.

    Raises ExportError when the state is not finite: such a model cannot be run.
    """
    graph = OrtGraph("lm_chunk", folder / entry.file, entry, OrtOptions())
    rng = np.random.default_rng(0)
    state = {f"in_{s.name}": np.zeros((rows, *s.shape), s.dtype) for s in lm_state(shape)}
    outputs = [f"out_{s.name}" for s in entry.state]
    length = 64 if shape.width < 1024 else 16
    largest = 0.0
    for _ in range(max(1, steps // length if length == 64 else 4)):
        tokens = rng.integers(0, shape.vocab, (rows, length))
        lengths = np.full(rows, length, np.int64)
        health, *new = graph.call({"tokens": tokens, "lengths": lengths, **state}, ["health", *outputs])
        if not np.isfinite(health).all():
            raise ExportError("the recurrent state is not finite after a few tokens: the weights are damaged")
        state = {f"in_{s.name}": array for s, array in zip(entry.state, new, strict=True)}
        largest = max(largest, float(health.max()))
    graph.close()
    return max(largest, 1e-3)


__all__ = ["export_models", "export_preset", "largest_lru", "part_file", "preset_shapes"]

"""The acoustic graphs of given weights, as exported, ready to run: what is judged is what ships."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from speechssm.engines.ort import OrtGraph, OrtOptions, Provider
from speechssm.export.graphs.acoustic import PART, acoustic_weights, build_acoustic, build_acoustic_prompt
from speechssm.export.graphs.builder import FLOAT, FLOAT16, GraphBuilder
from speechssm.export.models.acoustic import Acoustic
from speechssm.export.package import Weights, write_graph, write_parts
from speechssm.runtime.acoustic import GraphPass


def open_pass(
    model: Acoustic, *, half: bool = True, provider: Provider = "cpu", threads: int = 0
) -> GraphPass:
    """``model`` in ONNX Runtime; ``half`` stores its matrices as float16, as small bundles do."""
    stored, weights = FLOAT16 if half else FLOAT, {PART: acoustic_weights(model)}
    prompt, window = (
        open_builder(build(model.shape, stored), weights, provider=provider, threads=threads)
        for build in (build_acoustic_prompt, build_acoustic)
    )
    return GraphPass(prompt, window)


def open_builder(
    builder: GraphBuilder, weights: Mapping[str, Weights], *, provider: Provider = "cpu", threads: int = 0
) -> OrtGraph:
    """Any built graph with its parts' weights, through the packaging of bundles."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_parts(folder, {builder.name: builder}, weights)
        entry = write_graph(folder, builder.name, builder)
        return OrtGraph(builder.name, folder / entry.file, entry, OrtOptions(provider, threads))

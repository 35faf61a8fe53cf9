"""The acoustic graph of given weights, as exported, ready to run: what is judged is what ships."""

from __future__ import annotations

import tempfile
from pathlib import Path

from speechssm.engines.ort import OrtGraph, OrtOptions, Provider
from speechssm.export.graphs.acoustic import PART, acoustic_weights, build_acoustic
from speechssm.export.graphs.builder import FLOAT, FLOAT16
from speechssm.export.models.acoustic import Acoustic
from speechssm.export.package import write_graph, write_parts


def open_graph(
    model: Acoustic, *, half: bool = True, provider: Provider = "cpu", threads: int = 0
) -> OrtGraph:
    """``model`` through the exporter into ONNX Runtime; ``half`` stores its matrices as float16, as bundles do."""
    builder = build_acoustic(model.shape, FLOAT16 if half else FLOAT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_parts(folder, {"acoustic": builder}, {PART: acoustic_weights(model)})
        entry = write_graph(folder, "acoustic", builder)
        return OrtGraph("acoustic", folder / entry.file, entry, OrtOptions(provider, threads))

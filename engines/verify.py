"""Does every part of a bundle load, and does every graph run and give finite numbers?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from speechssm.axes import FRAME_SAMPLES, TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.bundle import Bundle, Manifest, tensors
from speechssm.bundle.manifest import Value
from speechssm.errors import BundleError

from .loading import BundleGraphs
from .ort import OrtOptions
from .protocol import Array


def verify_bundle(bundle: Bundle, options: OrtOptions | None = None) -> Iterator[str]:
    """Check weights and run every graph once on zeros; yields a line for each thing that is sound.

    Sizes, digests and weights were checked when ``bundle`` was opened. Raises BundleError or EngineError
    at the first thing that is not sound.
    """
    manifest = bundle.manifest
    yield f"manifest: version {manifest.version}, {len(manifest.files)} files, sizes and digests as listed"
    for name in sorted(n for n in bundle.manifest.files if n.endswith(".safetensors")):
        count = len(tensors.read_header(bundle.folder / name))
        yield f"{name}: {count} tensors, all finite"
    graphs = BundleGraphs(bundle, options)
    for name, entry in bundle.manifest.graphs.items():
        sizes = _sizes(bundle.manifest, name)
        inputs = {v.name: np.zeros(_shape(name, v, sizes), v.dtype) for v in entry.inputs}
        if "active" in inputs:
            inputs["active"][:] = True
        if "lengths" in inputs:
            inputs["lengths"][:] = sizes["t"]
        names = [v.name for v in entry.outputs]
        for value, array in zip(entry.outputs, graphs(name).call(inputs, names), strict=True):
            _check_output(name, value, array, sizes)
        graphs.release(name)
        yield f"{name}: loads and runs"


def _sizes(manifest: Manifest, graph: str) -> dict[str, int]:
    """A small value for every axis letter that a graph leaves open."""
    windows = manifest.windows
    tokens = {"acoustic": windows.buckets[0], "tokenizer": windows.window_tokens}.get(graph, 3)
    frames = tokens * TOKEN_FRAMES
    samples = frames * FRAME_SAMPLES if graph == "codec_decode" else tokens * TOKEN_SAMPLES
    if graph == "codec_encode":
        frames = samples // FRAME_SAMPLES
    return {"b": 2, "t": tokens, "f": frames, "n": samples, "s": manifest.lm.shape.window}


def _shape(graph: str, value: Value, sizes: dict[str, int]) -> tuple[int, ...]:
    for axis in value.axes:
        if isinstance(axis, str) and axis not in sizes:
            raise BundleError(
                f"graph {graph} has an axis {axis!r} on {value.name} that this version does not know: "
                "use the speechssm version that exported it"
            )
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in value.axes)


def _check_output(graph: str, value: Value, array: Array, sizes: dict[str, int]) -> None:
    shape = _shape(graph, value, sizes)
    if array.shape != shape:
        raise BundleError(f"graph {graph} gives {value.name} as {array.shape}, its manifest says {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BundleError(f"graph {graph} gives a {value.name} that is not finite on an input of zeros")

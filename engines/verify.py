"""Does every part of a bundle load, and does every graph run and give finite numbers?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from speechssm.axes import FRAME_SAMPLES, TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.bundle import Bundle, Manifest, tensors
from speechssm.bundle.manifest import Value
from speechssm.errors import BundleError

from .loading import BundleGraphs
from .ort import OrtOptions
from .protocol import Array

_FLOATS: dict[str, np.dtype[np.floating]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_BLOCK = 1 << 24


def verify_bundle(bundle: Bundle, options: OrtOptions | None = None) -> Iterator[str]:
    """Check weights and run every graph once on zeros; yields a line for each thing that is sound.

    Sizes and digests were checked when ``bundle`` was opened. Raises BundleError or EngineError at the
    first thing that is not sound.
    """
    manifest = bundle.manifest
    yield f"manifest: version {manifest.version}, {len(manifest.files)} files, sizes and digests as listed"
    for name in sorted(n for n in bundle.manifest.files if n.endswith(".safetensors")):
        count = _check_weights(bundle.folder / name)
        yield f"{name}: {count} tensors, all finite"
    graphs = BundleGraphs(bundle, options)
    for name, entry in bundle.manifest.graphs.items():
        sizes = _sizes(bundle.manifest, name)
        inputs = {v.name: _zeros(v, sizes) for v in entry.inputs}
        if "active" in inputs:
            inputs["active"][:] = True
        if "lengths" in inputs:
            inputs["lengths"][:] = sizes["t"]
        names = [v.name for v in entry.outputs]
        for value, array in zip(entry.outputs, graphs(name).call(inputs, names), strict=True):
            _check_output(name, value, array, sizes)
        graphs.release(name)
        yield f"{name}: loads and runs"


def _check_weights(path: Path) -> int:
    entries = tensors.read_header(path)
    with path.open("rb") as file:
        for name, entry in entries.items():
            file.seek(entry.offset)
            left = entry.length
            while left:
                raw = file.read(min(left, _BLOCK))
                left -= len(raw)
                if not _finite(raw, entry.dtype):
                    raise BundleError(
                        f"weight {name} of {path.name} is not finite: the export is damaged, make it again"
                    )
    return len(entries)


def _finite(raw: bytes, dtype: str) -> bool:
    if dtype == "BF16":
        # An exponent of all ones is an infinity or NaN.
        return not bool((np.frombuffer(raw, "<u2") & 0x7F80 == 0x7F80).any())
    return dtype not in _FLOATS or bool(np.isfinite(np.frombuffer(raw, _FLOATS[dtype])).all())


def _sizes(manifest: Manifest, graph: str) -> dict[str, int]:
    """A small value for every axis letter that a graph leaves open."""
    windows = manifest.windows
    tokens = {"acoustic": windows.prefix_tokens + windows.buckets[0], "tokenizer": windows.window_tokens}.get(
        graph, 3
    )
    frames = tokens * TOKEN_FRAMES
    samples = frames * FRAME_SAMPLES if graph == "codec_decode" else tokens * TOKEN_SAMPLES
    if graph == "codec_encode":
        frames = samples // FRAME_SAMPLES
    return {"b": 2, "t": tokens, "f": frames, "n": samples}


def _zeros(value: Value, sizes: dict[str, int]) -> Array:
    shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in value.axes)
    return np.zeros(shape, value.dtype)


def _check_output(graph: str, value: Value, array: Array, sizes: dict[str, int]) -> None:
    shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in value.axes)
    if array.shape != shape:
        raise BundleError(f"graph {graph} gives {value.name} as {array.shape}, its manifest says {shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BundleError(f"graph {graph} gives a {value.name} that is not finite on an input of zeros")

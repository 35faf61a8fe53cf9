"""Snapshot files: one safetensors file a session, with schema version and model digest in its header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import limits, tensors
from speechssm.errors import BundleError, SnapshotError
from speechssm.uninterrupted import run_uninterrupted

from .frozen import SCHEMA, Frozen

FORMAT = "speechssm-session"

_TYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "int8": "I8"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("<i1"),
}


def write_snapshot(path: Path, frozen: Frozen, digest: str) -> Path:
    """Write ``frozen`` under a temporary name, then rename it to ``path``.

    ``digest`` is that of the bundle the session belongs to. Raises SnapshotError when the folder cannot
    be written to; an older file at ``path`` is then still whole.
    """
    specs = {name: (_TYPES[str(a.dtype)], tuple(a.shape)) for name, a in sorted(frozen.tensors.items())}
    metadata = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "bundle": digest,
        "session": json.dumps(frozen.meta, separators=(",", ":"), sort_keys=True),
    }
    try:
        run_uninterrupted(lambda: _write(path, frozen, specs, metadata))
    except (OSError, ValueError) as error:
        raise SnapshotError(
            f"cannot write the snapshot {path}: {getattr(error, 'strerror', None) or error}; give another place"
        ) from error
    return path


def _write(
    path: Path, frozen: Frozen, specs: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    try:
        tensors.write(Path(name), specs, (frozen.tensors[key] for key in specs), metadata)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_snapshot(path: Path, digest: str, state_bytes: int = limits.STATE_BYTES) -> Frozen:
    """Read a snapshot of the bundle with ``digest``, whose sessions carry ``state_bytes`` of state.

    Raises SnapshotError when the file is missing, damaged, larger than the limit, of a newer schema, or
    of another bundle. Sizes are checked before anything is allocated.
    """
    largest = min(limits.SNAPSHOT_BYTES, state_bytes + limits.SNAPSHOT_EXTRA_BYTES)
    try:
        entries, metadata = tensors.read_header_and_metadata(path, largest_bytes=largest)
    except BundleError as error:
        raise SnapshotError(f"cannot restore {path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise SnapshotError(f"{path} is not a session snapshot: it was not written by session.snapshot()")
    if metadata.get("schema") != str(SCHEMA):
        raise SnapshotError(
            f"{path} has snapshot schema {metadata.get('schema')!r}, this runtime reads {SCHEMA}: "
            "use the speechssm version that wrote it"
        )
    if metadata.get("bundle") != digest:
        raise SnapshotError(f"{path} is a snapshot of another model: load the bundle it was made with")
    try:
        meta: Any = json.loads(metadata.get("session", ""))
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path} is damaged: its session table is not JSON") from error
    if not isinstance(meta, dict):
        raise SnapshotError(f"{path} is damaged: its session table is not a table")
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file:
            for name, entry in entries.items():
                if entry.dtype not in _DTYPES:
                    raise SnapshotError(f"{path} is damaged: tensor {name} has type {entry.dtype}")
                file.seek(entry.offset)
                raw = file.read(entry.length)
                arrays[name] = np.frombuffer(raw, _DTYPES[entry.dtype]).reshape(entry.shape).copy()
    except (OSError, ValueError) as error:
        raise SnapshotError(f"cannot read the snapshot {path}: {error}") from error
    return Frozen(meta, arrays)

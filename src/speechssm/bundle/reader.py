"""Opening a bundle: names, sizes, digests, weights and graphs are checked before an engine sees any of them.

In this order, so that nothing is believed before what it rests on: the manifest alone; every file's
name, kind and size; its digest, and on the same pass that its weights are numbers; what the graphs
point at and call (:mod:`.onnx_check`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from speechssm.errors import BundleError

from . import limits, tensors
from .manifest import MANIFEST, VERSION, WEIGHTS_SUFFIX, FileEntry, GraphEntry, Manifest, is_plain
from .onnx_check import check_graph


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder and its manifest."""

    folder: Path
    manifest: Manifest
    digest: str
    """sha256 of the manifest file; through the digests inside, it names every byte of the model."""

    def graph(self, name: str) -> tuple[Path, GraphEntry]:
        """File and signature of a graph; BundleError when the bundle has no such part."""
        entry = self.manifest.graphs.get(name)
        if entry is None:
            raise BundleError(
                f"bundle {self.manifest.name} has no {name} graph: "
                f"it holds only {', '.join(sorted(self.manifest.graphs))}"
            )
        return self.folder / entry.file, entry


def open_bundle(folder: Path | str, *, on_bytes: Callable[[int], None] | None = None) -> Bundle:
    """Read and check the bundle in ``folder``; ``on_bytes`` hears of every block hashed.

    Raises BundleError when the folder or a file is missing, a file is a link or not a regular file, the
    manifest is malformed or of another version, a size or digest differs, a weight is not finite, or a
    graph holds anything that :func:`.onnx_check.check_graph` refuses.
    """
    folder = Path(folder)
    manifest, digest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = _regular_file(folder, name)
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {entry.size_bytes}: copy the bundle again"
            )
    try:
        for name, entry in manifest.files.items():
            _check_content(folder / name, entry, on_bytes)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be read ({error.strerror or error}): check the disk, or copy the bundle again"
        ) from error
    for graph in manifest.graphs.values():
        check_graph(folder / graph.file, graph)
    return Bundle(folder, manifest, digest)


def _check_content(path: Path, entry: FileEntry, on_bytes: Callable[[int], None] | None) -> None:
    """Digest of a file; on the same pass, of a weight file, that it holds numbers."""
    unsound = ""
    if path.suffix == WEIGHTS_SUFFIX:
        found, unsound = _digest_weights(path, on_bytes)
    else:
        found = sha256(path, on_bytes)
    if found != entry.sha256:
        raise BundleError(
            f"{path} was altered or damaged: its sha256 is not the manifest's; copy the bundle again"
        )
    if unsound:
        raise BundleError(
            f"weight {unsound} of {path.name} is not finite: the export is damaged, make it again"
        )


def _digest_weights(path: Path, on_bytes: Callable[[int], None] | None) -> tuple[str, str]:
    """Hex digest of a safetensors file, and its first tensor that holds NaN or infinity, or ""."""
    digest = hashlib.sha256()
    unsound = ""
    for name, dtype, block in tensors.read_blocks(path, tensors.read_header(path)):
        digest.update(block)
        if not unsound and not tensors.finite(block, dtype):
            unsound = name
        if on_bytes:
            on_bytes(len(block))
    return digest.hexdigest(), unsound


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of ``folder`` and its sha256. Nothing else is opened."""
    if not os.path.isdir(folder):  # unlike Path's, it answers for names no file can have
        raise BundleError(
            f"there is no bundle at {folder}: make one with 'speechssm export --preset tiny -o {folder}'"
        )
    path = _regular_file(folder, MANIFEST)
    try:
        with path.open("rb") as file:
            raw = file.read(limits.MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(raw) > limits.MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {limits.MANIFEST_BYTES} bytes: it is not a manifest")
    try:
        table = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    version = table.get("version") if isinstance(table, dict) else None
    if version != VERSION or isinstance(version, bool | float):
        raise BundleError(
            f"{path} is of bundle version {repr(version)[:40]}, this runtime reads version {VERSION}: "
            "export the model again, or install the matching speechssm"
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path} is not a valid manifest: {where}: {first['msg']}") from error
    return manifest, hashlib.sha256(raw).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def _regular_file(folder: Path, name: str) -> Path:
    path = folder / name
    if not is_plain(name):
        raise BundleError(
            f"{name!r} is not a plain file name: a bundle may only name files in its own folder"
        )
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}): the bundle is incomplete, copy it again"
        ) from error
    if not stat.S_ISREG(mode):
        raise BundleError(
            f"{path} is a link or special file: a bundle holds regular files only, copy the file itself there"
        )
    return path

"""Opening a bundle: names, sizes and digests are checked before any graph or weight is touched."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from speechssm.errors import BundleError

from . import limits
from .manifest import MANIFEST, VERSION, GraphEntry, Manifest, is_plain


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
    manifest is malformed or of another version, or a size or digest differs.
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
    for name, entry in manifest.files.items():
        if sha256(folder / name, on_bytes) != entry.sha256:
            raise BundleError(
                f"{folder / name} was altered or damaged: its sha256 is not the manifest's; copy the bundle again"
            )
    return Bundle(folder, manifest, digest)


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of ``folder`` and its sha256. Nothing else is opened."""
    if not folder.is_dir():
        raise BundleError(
            f"there is no bundle at {folder}: make one with 'speechssm export --preset tiny -o {folder}'"
        )
    path = _regular_file(folder, MANIFEST)
    if path.stat().st_size > limits.MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {limits.MANIFEST_BYTES} bytes: it is not a manifest")
    raw = path.read_bytes()
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    version = table.get("version") if isinstance(table, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise BundleError(
            f"{path} is of bundle version {version!r}, this runtime reads version {VERSION}: "
            "export the model again, or install the matching speechssm"
        )
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path} is not a valid manifest: {where}: {first['msg']}") from error
    return manifest, hashlib.sha256(raw).hexdigest()


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

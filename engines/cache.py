"""A folder of built engines: found by key, checked by digest, written whole or not at all.

    CACHE/<key digest>/engine.bin     what the vendor's builder made (model.onnx, weights.bin for ONNX Runtime)
    CACHE/<key digest>/record.json    its key, and digest and size of each file

An engine is executable code, so one is given out only when its bytes are those its record names. A record
that cannot be read, or an engine that does not match it, is never loaded and never deleted silently:
``speechssm explain`` says what is wrong and what to run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from speechssm.bundle.manifest import FileEntry, FileName
from speechssm.bundle.reader import sha256
from speechssm.bundle.shapes import Shape
from speechssm.errors import EngineError

from .key import EngineKey, Flavour

RECORD = "record.json"
ENGINE = "engine.bin"
MAIN: dict[Flavour, str] = {"tensorrt": ENGINE, "tensorrt-rtx": ENGINE, "onnxruntime-cuda": "model.onnx"}
"""The file that is opened, by who opens it."""
RECORD_BYTES = 1 << 20
"""Largest record that is read."""
LOCK_SECONDS = 3600.0
"""How long to wait for another process that is building the same engine."""


class Record(Shape):
    """What is known of one built engine."""

    key: EngineKey
    files: dict[FileName, FileEntry]
    speechssm: str
    layers: dict[str, int] = Field(default_factory=dict)
    """Layer kinds and their number, as the builder reported them."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the engine."""
        return sum(entry.size_bytes for entry in self.files.values())


@dataclass(frozen=True)
class Verdict:
    """Whether an engine can be used again, and if not, why and what to run."""

    engine: Path | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        if self.engine is not None:
            return f"{self.engine} is reused"
        return "; ".join(self.reasons)


def find(cache: Path, wanted: EngineKey) -> Verdict:
    """The engine for ``wanted``, its bytes checked, or the reasons why there is none."""
    folder = cache / wanted.digest()
    if not folder.is_dir():
        return Verdict(None, _nearest(cache, wanted))
    record, problem = read_record(folder)
    if record is None:
        return Verdict(None, (problem,))
    differences = wanted.differences(record.key)
    if differences:
        return Verdict(None, tuple(f"{folder.name}: {d}" for d in differences))
    main = MAIN[record.key.flavour]
    if main not in record.files:
        return Verdict(None, (f"{folder / RECORD} is damaged: it does not list {main}",))
    for name, entry in record.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size_bytes:
            return Verdict(None, (f"{path} is missing, a link, or of another size than its record says",))
        if sha256(path) != entry.sha256:
            return Verdict(None, (f"{path} was altered after it was built: its sha256 is not the record's",))
    return Verdict(folder / main, ())


def read_record(folder: Path) -> tuple[Record | None, str]:
    """The record of an engine folder, or None and why it cannot be read."""
    path = folder / RECORD
    try:
        if path.is_symlink() or path.stat().st_size > RECORD_BYTES:
            return None, f"{path} is a link or larger than a record can be"
        return Record.model_validate_json(path.read_bytes()), ""
    except OSError as error:
        return (
            None,
            f"{path} cannot be read ({error.strerror}): the build was interrupted or files are missing",
        )
    except ValidationError as error:
        first = error.errors()[0]
        return None, f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"


def list_engines(cache: Path) -> Iterator[str]:
    """One line for every engine in ``cache``: what it is, and whether its bytes are those of its record."""
    for folder in sorted(p for p in cache.iterdir() if p.is_dir() and not p.name.startswith(".")):
        record, problem = read_record(folder)
        if record is None:
            yield f"{folder.name}: not usable: {problem}; build it again, or remove the folder"
            continue
        key = record.key
        what = f"{key.graph} for {key.flavour} {key.flavour_version} on {key.architecture}, {key.precision}"
        verdict = find(cache, key)
        state = "sound" if verdict.engine else f"not usable: {verdict}; build it again"
        yield f"{folder.name}: {what}, {record.size_bytes / 1e6:.1f} MB: {state}"


def build_once(cache: Path, key: EngineKey, build: Callable[[Path], dict[str, int]], version: str) -> Path:
    """The engine for ``key``, built by ``build(folder)`` if it is not there; two builders give one result.

    ``build`` writes the engine's files into the folder and returns its layer counts. A build that fails or
    is killed leaves nothing that will be found. Raises EngineError when the cache cannot be written to.
    """
    found = find(cache, key)
    if found.engine is not None:
        return found.engine
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{key.digest()}.lock"):
            found = find(cache, key)
            return found.engine if found.engine is not None else _build(cache, key, build, version)
    except OSError as error:
        raise EngineError(f"cannot write to the engine cache {cache}: {error.strerror or error}") from error


def _build(cache: Path, key: EngineKey, build: Callable[[Path], dict[str, int]], version: str) -> Path:
    work = Path(tempfile.mkdtemp(prefix=f".{key.digest()}.", suffix=".partial", dir=cache))
    target = cache / key.digest()
    try:
        layers = build(work)
        files = {
            path.name: FileEntry(sha256=sha256(path), size_bytes=path.stat().st_size)
            for path in sorted(work.iterdir())
        }
        record = Record(key=key, files=files, speechssm=version, layers=layers)
        (work / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if target.exists():
            # A folder is there that find() refused: it is put aside, not mixed with the new files.
            os.replace(target, work.with_suffix(".refused"))
        os.replace(work, target)
        shutil.rmtree(work.with_suffix(".refused"), ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / MAIN[key.flavour]


def _nearest(cache: Path, wanted: EngineKey) -> tuple[str, ...]:
    """Why the most similar engine in the cache does not do, or that there is none of this graph."""
    best: tuple[int, tuple[str, ...]] | None = None
    for folder in cache.iterdir() if cache.is_dir() else ():
        record, _ = read_record(folder) if folder.is_dir() else (None, "")
        if record is not None and record.key.graph == wanted.graph:
            reasons = tuple(f"{folder.name}: {d}" for d in wanted.differences(record.key))
            if best is None or len(reasons) < best[0]:
                best = len(reasons), reasons
    return best[1] if best else (f"no engine of graph {wanted.graph} was built yet in {cache}",)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise EngineError(
            "building engines needs filelock: run 'pip install speechssm[rtx]' or [trt]"
        ) from error
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise EngineError(
            f"another process has been building this engine for over an hour: remove {path} if not"
        ) from error

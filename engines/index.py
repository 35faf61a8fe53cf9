"""``engines.json``: which engines of a folder belong to which bundle, and how they were asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from speechssm.bundle.manifest import GraphName, Text
from speechssm.bundle.shapes import Shape
from speechssm.errors import EngineError

from .key import Digest, Flavour
from .prepare import Precision
from .profiles import Profiles

INDEX = "engines.json"
INDEX_BYTES = 1 << 20
"""Largest index that is read."""
Architecture = Annotated[str, Field(pattern=r"^(sm_[0-9]{2,3})$")]
FolderName = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class BuildSettings(Shape):
    """How engines are asked for."""

    engine: Flavour
    precision: Precision = "float32"
    profiles: Profiles = Profiles()
    architectures: tuple[Architecture, ...] = ()
    """Compute capabilities a TensorRT-RTX engine is compiled for; none builds a portable one."""
    plugin: bool = True
    """Whether the recurrence is the plugin's (or the operator library's), or standard operators."""
    aliased: bool = False
    """Whether the step's recurrence writes its state in place."""
    tf32: bool = False
    """Whether products of float32 may round their factors to 10 bits of mantissa."""


class IndexEntry(Shape):
    """Where the engine of a graph lies, and the digest of its record, which names the digests of its files."""

    folder: FolderName
    record_sha256: Digest


class EngineIndex(Shape):
    """The engines of one bundle in one folder."""

    format: Literal["speechssm-engines"] = "speechssm-engines"
    version: Literal[1] = 1
    bundle: Text
    bundle_digest: Digest
    settings: BuildSettings
    graphs: dict[GraphName, IndexEntry]


def read_index(folder: Path) -> EngineIndex:
    """The index of ``folder``. Raises EngineError when there is none or it is damaged."""
    path = folder / INDEX
    again = f"build the engines again with 'speechssm build BUNDLE -o {folder}'"
    try:
        if path.is_symlink() or path.stat().st_size > INDEX_BYTES:
            raise EngineError(f"{path} is a link or larger than an index can be: {again}")
        raw = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"there are no engines in {folder} ({INDEX}: {error.strerror}): make them with "
            f"'speechssm build BUNDLE --engine tensorrt-rtx -o {folder}'"
        ) from error
    try:
        return EngineIndex.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "index"
        raise EngineError(f"{path} is damaged: {where}: {first['msg']}: {again}") from error


def write_index(folder: Path, index: EngineIndex) -> None:
    """Write the index whole or not at all."""
    partial = folder / f".{INDEX}.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(index.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / INDEX)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EngineError(f"cannot write {folder / INDEX}: {error.strerror or error}") from error


def command(settings: BuildSettings, bundle: str, folder: Path) -> str:
    """The command that builds engines like these again."""
    default, words = BuildSettings(engine=settings.engine), [f"--engine {settings.engine}"]
    if settings.precision != default.precision:
        words.append(f"--precision {settings.precision}")
    for name in Profiles.model_fields:
        chosen = getattr(settings.profiles, name)
        if chosen != getattr(default.profiles, name):
            words.append(f"--{name} {chosen.low},{chosen.likely},{chosen.high}")
    words += [f"--arch {name}" for name in settings.architectures]
    words += [] if settings.plugin else ["--no-plugin"]
    words += ["--aliased"] if settings.aliased else []
    words += ["--tf32"] if settings.tf32 else []
    return f"speechssm build {bundle} {' '.join(words)} -o {folder}"

"""Job lists: one JSON object a line, and the journal that says which of them are done.

A job's identity is a digest of what it asks for and of the bundle, so a journal line proves that the audio
beside it is of this job and no other. The seed of a job that names none comes from the same digest: done
again after an interruption, it says the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechssm.errors import SettingsError

JOBS = 1_000_000
"""Most jobs of one list."""
LINE_BYTES = 1 << 16
"""Longest line of a list or journal."""
FORMATS = ("wav", "flac", "w64")


class Job(BaseModel):
    """One line. Options are those of ``speechssm generate``; paths are relative to the list's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1)]
    seconds: Annotated[float, Field(gt=0, strict=True)]
    seed: Annotated[int, Field(ge=0, lt=1 << 64, strict=True)] | None = None
    speaker: Annotated[str, Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(strict=True)] = 1.0
    top_k: Annotated[int, Field(strict=True)] = 0
    top_p: Annotated[float, Field(strict=True)] = 1.0
    ramp: Annotated[bool, Field(strict=True)] = False
    schedule: Literal["default", "fast"] = "default"
    with_prompt: Annotated[bool, Field(strict=True)] = False
    unbounded: Annotated[bool, Field(strict=True)] = False
    id: Annotated[str, Field(max_length=200)] | None = None
    """Copied to the journal, for whoever wrote the list."""


@dataclass(frozen=True)
class Listed:
    """A job at its place: ``number`` counts jobs from 0, ``digest`` is its identity, ``seed`` is settled."""

    number: int
    job: Job
    digest: str
    seed: int
    prompt: Path
    speaker: Path | None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of :meth:`Service.submit` beside the prompt."""
        chosen = self.job.model_dump(
            include={"seconds", "temperature", "top_k", "top_p", "ramp", "schedule", "unbounded"}
        )
        return {**chosen, "seed": self.seed, "speaker": self.speaker}


def read_jobs(path: Path, bundle_digest: str) -> list[Listed]:
    """Every job of a list, checked before any work is done. Empty lines are left out.

    Raises SettingsError that names the line.
    """
    found: list[Listed] = []
    try:
        with _open(path) as file:
            for line, raw in enumerate(_lines(file, path), start=1):
                if raw.strip():
                    if len(found) >= JOBS:
                        raise SettingsError(f"{path} holds more than {JOBS} jobs: split it")
                    found.append(_listed(path, line, raw, len(found), bundle_digest))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise SettingsError(
            f'{path} holds no job: write one object a line, {{"prompt": "a.wav", "seconds": 20}}'
        )
    return found


def _open(path: Path) -> BinaryIO:
    """Open for reading without waiting: a pipe might never begin, and a device never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SettingsError(f"{path} is not a file: give a file of one JSON object a line")
    return os.fdopen(handle, "rb")


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    number = 0
    while raw := file.readline(LINE_BYTES + 1):
        number += 1
        if len(raw) > LINE_BYTES:
            raise SettingsError(f"{path} line {number} is longer than {LINE_BYTES} bytes: it is no job")
        yield raw


def _listed(path: Path, line: int, raw: bytes, number: int, bundle_digest: str) -> Listed:
    try:
        job = Job.model_validate(json.loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise SettingsError(f"{path} line {line}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} line {line} is not a JSON object: {error}") from error
    text = json.dumps([bundle_digest, number, job.model_dump(exclude={"id"})], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    seed = int(digest[:15], 16) if job.seed is None else job.seed
    speaker = None if job.speaker is None else path.parent / job.speaker
    return Listed(number, job, digest, seed, path.parent / job.prompt, speaker)


class Journal:
    """Which jobs are done: a file of JSON lines that is only ever appended to, each line made durable.

    A job is done when a line with its number and digest is there and so is its audio; the line is written
    after the audio has its name. A last line torn by a crash counts as not written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[int, dict[str, Any]] = {}
        """The last line of each job number."""
        torn = False
        try:
            with _open(path) as file:
                for raw in _lines(file, path):
                    torn = not raw.endswith(b"\n")
                    try:
                        line = json.loads(raw)
                        self.lines[int(line["number"])] = line
                    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                        continue
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SettingsError(f"cannot read {path}: {error.strerror or error}") from error
        if torn:
            self._append(b"\n")

    def is_done(self, listed: Listed, out: Path) -> bool:
        """Whether ``out`` is the finished audio of this very job."""
        line = self.lines.get(listed.number)
        return line is not None and line.get("digest") == listed.digest and out.is_file()

    def is_another(self, listed: Listed) -> bool:
        """Whether this number was done for other options, or with another bundle."""
        line = self.lines.get(listed.number)
        return line is not None and line.get("digest") != listed.digest

    def done(self, listed: Listed, **facts: Any) -> None:
        """Write that a job is done, and what came of it."""
        line = {
            "number": listed.number,
            "digest": listed.digest,
            "id": listed.job.id,
            "seed": listed.seed,
            **facts,
        }
        self._append(json.dumps(line).encode() + b"\n")
        self.lines[listed.number] = line

    def _append(self, raw: bytes) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, raw)
            os.fsync(handle)
        finally:
            os.close(handle)

"""What every attack needs: a command line in this process, bundles and snapshots to bend, and one verdict."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from speechssm import cli
from speechssm.bundle import tensors
from speechssm.errors import SnapshotError
from speechssm.runtime.model import Model

Table = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(*words: object) -> Run:
    """The command line in this process; anything but an orderly exit is the test's failure."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = ["speechssm", *map(str, words)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Run(code, out.getvalue(), err.getvalue())


def refused(folder: Path, *words: object, why: str, code: int = 1) -> str:
    """Run a command that must fail in one sentence holding ``why`` and leave ``folder`` as it was."""
    before = listing(folder)
    done = run(*words)
    assert done.code == code, done
    one_sentence(done.err.removeprefix("speechssm: ").removesuffix("\n"), why)
    assert done.err.startswith("speechssm: ")
    assert done.out == ""
    assert listing(folder) == before, "something was left behind"
    return done.err


def one_sentence(message: str, why: str) -> None:
    """The form every refusal has."""
    assert why in message, message
    assert message.isprintable(), message
    assert "Traceback" not in message
    assert 20 < len(message) < 2100, message


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every name under a folder; of files the size and the time of the last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        times = (status.st_size, status.st_mtime_ns) if not stat.S_ISDIR(status.st_mode) else (0, 0)
        found[str(path.relative_to(folder))] = times
    return found


class HostileBundle:
    """A copy of the tiny bundle that bends in one place; digests are made right again around the bend."""

    def __init__(self, folder: Path, prompt: Path) -> None:
        self.folder = folder
        self.prompt = prompt

    def path(self, name: str) -> Path:
        return self.folder / name

    # bending

    def edit(self, change: Callable[[Table], object]) -> None:
        """Change the manifest's table."""
        table = json.loads(self.path("manifest.json").read_text())
        change(table)
        self.path("manifest.json").write_text(json.dumps(table))

    def put(self, name: str, content: bytes) -> None:
        """Write a file and list it with its true size and digest: what a forger would do."""
        self.path(name).write_bytes(content)
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        self.edit(lambda m: m["files"].update({name: entry}))

    @contextlib.contextmanager
    def model(self, graph: str = "lm_step") -> Iterator[onnx.ModelProto]:
        """A graph to change with the onnx package; it is written back when the block ends."""
        model = onnx.load(self.path(f"{graph}.onnx"), load_external_data=False)
        yield model
        self.put(f"{graph}.onnx", model.SerializeToString())

    @contextlib.contextmanager
    def weights(self, part: str = "lm") -> Iterator[bytearray]:
        """A weight file's bytes to change."""
        content = bytearray(self.path(f"{part}.safetensors").read_bytes())
        yield content
        self.put(f"{part}.safetensors", bytes(content))

    # the verdict

    def is_refused(self, why: str) -> None:
        """Every command that opens a bundle says so in one sentence, and no engine ever sees it."""
        out = self.folder.parent / "out" / "speech.wav"
        commands = (
            ("inspect", self.folder),
            ("verify", self.folder),
            ("generate", self.prompt, "-o", out, "--seconds", 1, "--bundle", self.folder),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onnxruntime.InferenceSession", _no_engine)
            for words in commands:
                refused(self.folder.parent, *words, why=why)

    def fails_when_run(self, why: str) -> None:
        """What only shows when a graph runs: ``generate`` still ends in one sentence and leaves nothing."""
        out = self.folder.parent / "out" / "speech.wav"
        words = ("generate", self.prompt, "-o", out, "--seconds", 1, "--bundle", self.folder)
        refused(self.folder.parent, *words, "--threads", 1, why=why)


def _no_engine(*_args: object, **_kwargs: object) -> None:
    pytest.fail("ONNX Runtime was pointed at a hostile bundle")


def copy_bundle(source: Path, folder: Path, prompt: Path) -> HostileBundle:
    target = folder / "bundle"
    shutil.copytree(source, target)
    (folder / "out").mkdir()
    return HostileBundle(target, prompt)


def weight_of(model: onnx.ModelProto) -> onnx.TensorProto:
    """The first external weight of a model."""
    return next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)


def place(tensor: onnx.TensorProto, **values: object) -> None:
    """Set a weight's location, offset or length."""
    for entry in tensor.external_data:
        if entry.key in values:
            entry.value = str(values[entry.key])


# ---- snapshots ---------------------------------------------------------------------------------------


class HostileSnapshot:
    """A true snapshot's tensors and metadata, to be bent and written back."""

    def __init__(self, path: Path, model: Model) -> None:
        self.path = path
        self.model = model
        entries, self.metadata = tensors.read_header_and_metadata(path)
        raw = path.read_bytes()
        self.specs = {name: (e.dtype, e.shape) for name, e in entries.items()}
        self.arrays: dict[str, np.ndarray] = {
            name: np.frombuffer(raw[e.offset : e.offset + e.length], _DTYPES[e.dtype]).reshape(e.shape).copy()
            for name, e in entries.items()
        }
        self.session: Table = json.loads(self.metadata["session"])

    def set(self, name: str, array: np.ndarray) -> None:
        """Put a tensor in, whatever was there."""
        kinds = {np.dtype(d): k for k, d in _DTYPES.items()}
        self.arrays[name], self.specs[name] = array, (kinds[array.dtype], array.shape)

    def write(self) -> Path:
        """Write it as the runtime would."""
        metadata = {**self.metadata, "session": json.dumps(self.session)}
        tensors.write(self.path, self.specs, (self.arrays[name] for name in self.specs), metadata)
        return self.path

    def is_refused(self, why: str) -> None:
        """Written back and restored: one sentence."""
        snapshot_refused(self.model, self.write(), why)


_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "BOOL": np.dtype("?")}


def snapshot_refused(model: Model, path: Path, why: str) -> None:
    """Restoring ``path`` ends in one sentence of ours."""
    with pytest.raises(SnapshotError) as caught:
        model.restore(path)
    one_sentence(str(caught.value), why)


def safetensors_file(header: bytes | Table, data: bytes = b"") -> bytes:
    """A safetensors file with any header at all."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data

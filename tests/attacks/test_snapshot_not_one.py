"""Something else under a snapshot's name: a weight file, a manifest, a pickle, nothing."""

import os
import pickle
from pathlib import Path

import pytest

from speechssm.runtime.model import Model

from .attack import HostileBundle, snapshot_refused


def test_weights(bundle: HostileBundle, model: Model) -> None:
    snapshot_refused(model, bundle.path("lm.safetensors"), "is not a session snapshot")


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(7), bytes(8), pickle.dumps({"a": 1}), b"\xff" * 99, b"{}" * 50]
)
def test_other(tmp_path: Path, model: Model, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    snapshot_refused(model, tmp_path / "s", "cannot restore" if content != bytes(8) else "")


@pytest.mark.parametrize(
    "path", ["nowhere", ".", "/dev/zero", "/dev/null", "loop", "pipe", "x" * 5000, "a\x00b"]
)
def test_path(tmp_path: Path, model: Model, path: str) -> None:
    """Not a file: a pipe must not hang, a device must not be read for ever."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    snapshot_refused(model, tmp_path / path, "cannot restore")

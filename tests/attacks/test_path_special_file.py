"""A pipe, a folder or a device in place of a file: reading it would hang or never end."""

import os
import stat

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
@pytest.mark.parametrize("name", ["manifest.json", "lm.safetensors", "lm_step.onnx"])
def test_refused(bundle: HostileBundle, name: str, kind: str) -> None:
    path = bundle.path(name)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | stat.S_IFSOCK)
    bundle.is_refused("is a link or special file")

"""A link in place of a file: to the true file, to a secret, to itself, to nothing."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("target", ["/etc/passwd", "moved", "loop", "nowhere"])
@pytest.mark.parametrize("name", ["manifest.json", "lm.safetensors", "lm_step.onnx"])
def test_refused(bundle: HostileBundle, name: str, target: str) -> None:
    path = bundle.path(name)
    path.rename(bundle.folder.parent / "moved")
    if target == "moved":
        path.symlink_to(bundle.folder.parent / "moved")
    else:
        path.symlink_to(path if target == "loop" else target)
    bundle.is_refused("is a link or special file")

"""A bundle path that is no folder: missing, a file, a device, a name no file can have."""

from pathlib import Path

import pytest

from .attack import refused

PATHS = ["nowhere", "/dev/null", "/dev/zero", "/proc/self/mem", "x" * 5000, "loop"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("command", [("inspect",), ("verify",)])
def test_refused(tmp_path: Path, path: str, command: tuple[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path, *command, tmp_path / path if path == "loop" else path, why="there is no bundle at")


def test_generate(tmp_path: Path, prompt: Path) -> None:
    words = ("generate", prompt, "-o", tmp_path / "x.wav", "--seconds", 1, "--bundle", tmp_path / "nowhere")
    refused(tmp_path, *words, why="there is no bundle at")


def test_no_name_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "inspect", "a\x00b", why="null byte", code=2)

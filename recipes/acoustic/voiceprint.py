"""Speaker embeddings as teacher and judge: Resemblyzer's weights (Apache-2.0), fetched by name, never shipped."""

from __future__ import annotations

import io
import zipfile

from speechssm.perf.quality.voiceprint import WIDTH, Voiceprint, without_pauses
from speechssm.perf.quality.voiceprint import load as load_weights

from .. import places
from ..teachers.packages import download

PACKAGE = "Resemblyzer==0.1.4"
WEIGHTS = "resemblyzer/pretrained.pt"


def load(device: str = "cpu") -> Voiceprint:
    """The trained network, fetched once by package name."""
    (wheel,) = download((PACKAGE,), places.cache("packages"))
    with zipfile.ZipFile(wheel) as archive:
        return load_weights(io.BytesIO(archive.read(WEIGHTS)), device)


__all__ = ["WIDTH", "Voiceprint", "load", "without_pauses"]

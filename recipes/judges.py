"""The judges of ``speechssm bench quality`` with the models that the recipes fetch by package name."""

from __future__ import annotations

from speechssm.perf.quality.judges import Judges

from . import places
from .acoustic import voiceprint
from .teachers.packages import whisper_base


def opened() -> Judges:
    """Resemblyzer's network for voices, DNSMOS for naturalness, Whisper-base for words; what is absent says so."""
    packages = places.cache("packages")
    return Judges({"speaker": str(voiceprint.path()), "asr": str(whisper_base(packages))})

"""The judges of ``speechssm bench quality`` with the models that the recipes fetch by package name."""

from __future__ import annotations

import importlib.util
import subprocess

from speechssm.errors import SpeechSSMError
from speechssm.perf.quality.judges import Judges

from . import places
from .acoustic import voiceprint
from .teachers.packages import whisper_base


def opened() -> Judges:
    """Resemblyzer's network for voices, DNSMOS for naturalness, Whisper-base for words; what is absent says so."""
    fetched = {"speaker": voiceprint.path}
    if importlib.util.find_spec("faster_whisper") is not None:  # else its weights are of no use
        fetched["asr"] = lambda: whisper_base(places.cache("packages"))
    paths: dict[str, str] = {}
    absent: dict[str, str] = {}
    for role, fetch in fetched.items():
        try:
            paths[role] = str(fetch())
        except (SpeechSSMError, OSError, subprocess.CalledProcessError) as error:
            absent[role] = str(error)
    return Judges(paths, absent)

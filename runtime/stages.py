"""The parts of a loaded bundle as sessions use them: tokenize, continue, fill in codes, decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from speechssm.bundle import StateTensor
from speechssm.engines.protocol import Graph
from speechssm.errors import SessionFailed, SettingsError

from .acoustic import AcousticSchedule, GraphPass, Voice, WindowRow, decode_windows
from .codec import CodecStream
from .lm import LanguageModel
from .prompt import speaker_voice, tokenize
from .settings import SamplerSettings
from .windows import WindowSettings


@dataclass(frozen=True)
class Stages:
    """Shared by all sessions of a model, in any number of threads.

    ``levels`` (q) and ``codes`` (c) are the codec's, ``buckets`` the window lengths in tokens that the
    acoustic graph may be called with, ``digest`` the bundle's, ``graphs`` gives a graph by name.
    """

    language_model: LanguageModel
    levels: int
    codes: int
    buckets: tuple[int, ...]
    codec_schema: tuple[StateTensor, ...]
    digest: str
    graphs: Callable[[str], Graph]

    def check(self, sampler: SamplerSettings, windows: WindowSettings, schedule: AcousticSchedule) -> None:
        """Raise SettingsError when this bundle cannot run these settings."""
        sampler.check_against(self.language_model.k_max)
        schedule.passes(self.levels)
        for bucket in windows.buckets:
            if bucket not in self.buckets:
                raise SettingsError(
                    f"windows of {bucket} tokens are not among this bundle's buckets {self.buckets}: "
                    "keep the default windows"
                )

    def tokenize(self, audio: np.ndarray) -> np.ndarray:
        """audio (n) at 16 kHz -> semantic tokens int64 (t), t = ceil(n/640)."""
        return tokenize(self.graphs("tokenizer"), audio)

    def voice(self, audio: np.ndarray, tokens: np.ndarray) -> Voice:
        """The last 3 s of a recording and its tokens, as prefix of every acoustic window."""
        return speaker_voice(self.graphs("codec_encode"), audio, tokens)

    def acoustic_pass(self) -> GraphPass:
        """The acoustic stage's graphs."""
        return GraphPass(self.graphs("acoustic_prompt"), self.graphs("acoustic"))

    def decode_window(self, row: WindowRow, schedule: AcousticSchedule) -> np.ndarray:
        """Codes (q, 2t) of one acoustic window. Raises SessionFailed when they are not finite."""
        (codes,), failed = decode_windows(self.acoustic_pass(), [row], schedule)
        if failed:
            raise SessionFailed(
                "the acoustic stage's confidences are not finite: check the bundle with 'speechssm verify'"
            )
        return codes

    def codec_stream(self) -> CodecStream:
        """A streaming decoder at the start of its stream."""
        return CodecStream(self.graphs("codec_decode"), self.codec_schema)

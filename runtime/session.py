"""One stream being continued: prompt in, audio out for as long as asked, in constant memory.

    prompt --tokenize--> tokens --prefill--> LM state
    LM steps --> tokens --windows--> acoustic calls --> codes --stitch--> frames --codec--> audio

The session pulls: audio is made when the caller asks for more, and between two pieces everything is in
the session's fields, so it can be snapshotted, forked or dropped at any of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ
from speechssm.bundle import limits
from speechssm.errors import SessionFailed, SettingsError

from .acoustic import AcousticSchedule, Voice, WindowRow
from .clock import SessionStats
from .codec import SLICE_FRAMES, CodecStream
from .frozen import freeze, thaw
from .lm import LMRows
from .random import acoustic_uniforms, check_seed
from .settings import SamplerSettings, number
from .snapshot import write_snapshot
from .stitch import CodeStitcher
from .tokens import TokenBuffer
from .windows import WindowCall, WindowSettings, keep_from, next_call, token_count, tokens_needed

if TYPE_CHECKING:
    from .model import Model

DAY_SECONDS = 86_400.0
"""Longest stream without ``unbounded``."""


@dataclass(frozen=True)
class SessionSettings:
    """Everything that, with the prompt and the bundle, decides what a session says.

    ``seed`` drives the language model and the acoustic stage. ``windows.ramp`` trades quality of the
    first 30 s for early sound.
    """

    seed: int = 0
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)
    acoustic: AcousticSchedule = field(default_factory=AcousticSchedule)

    def __post_init__(self) -> None:
        """Raise SettingsError for a seed that is not an unsigned 64-bit number."""
        check_seed(self.seed)


class Session:
    """A stream of speech. Made by ``Model.open``, ``Model.restore`` or :meth:`fork`; not thread-safe.

    Audio is float32 (n), 16 kHz, mono.
    """

    def __init__(
        self, model: Model, settings: SessionSettings, voice: Voice, *, opened: float | None = None
    ) -> None:
        self.model = model
        self.settings = settings
        self.voice = voice
        self.stats = SessionStats()
        self.lm = LMRows(model.language_model, 1)
        self.tokens = TokenBuffer(settings.windows)
        self.stitcher = CodeStitcher(settings.windows, model.levels)
        self.codec = CodecStream(*model.codec_decoder())
        self.pending = np.empty((model.levels, 0), np.int64)
        """Codes (q,f) stitched but not yet decoded."""
        self.held = np.empty(0, np.float32)
        """Samples decoded but not yet given out."""
        self.asked = 0
        """Samples asked for so far; ``resume`` goes on to here."""
        self.position = 0
        """LM position: prompt tokens and new ones."""
        self._opened = time.perf_counter() if opened is None else opened
        self._closed = False

    def read_prompt(self, tokens: np.ndarray) -> None:
        """Feed the prompt's tokens (t) to the language model. Called once, on a new session."""
        self.lm.start(0, int(tokens[0]), self.settings.sampler, self.settings.seed)
        self.lm.prefill(0, tokens[1:].tolist())
        self.lm.active[0] = True
        self.position = len(tokens)

    # audio

    def stream(self, seconds: float = math.inf, *, unbounded: bool = False) -> Iterator[np.ndarray]:
        """Yield ``seconds`` more of new speech, in pieces of at most 2 s.

        Each call goes on where the last one stopped; the speech of a call is complete, to the sample,
        when its iterator ends. An endless stream (the default), or one past 24 h, needs ``unbounded``.

        Raises SettingsError for seconds that are not positive; SessionFailed, from the iterator, when
        the model's state is no longer usable; EngineError when an engine fails.
        """
        samples = self._samples(seconds, unbounded)
        self.asked = self.stats.samples + samples if samples is not None else -1
        return self._run()

    def resume(self) -> Iterator[np.ndarray]:
        """Go on with an interrupted stream, to the end it was asked for."""
        return self._run()

    def _samples(self, seconds: float, unbounded: bool) -> int | None:
        if seconds == math.inf and unbounded:
            return None
        if not unbounded and isinstance(seconds, int | float) and seconds > DAY_SECONDS:
            raise SettingsError(
                f"{seconds:g} seconds is more than 24 h: pass unbounded=True (--unbounded) if that is meant"
            )
        longest = limits.POSITION / TOKEN_RATE_HZ
        samples = round(number("seconds", seconds, 0.0, longest) * SAMPLE_RATE_HZ)
        if samples < 1:
            raise SettingsError(f"seconds is {seconds!r}: give a length above zero")
        return samples

    def _run(self) -> Iterator[np.ndarray]:
        while self.asked < 0 or self.stats.samples < self.asked:
            self._check_open()
            piece = self._next_piece()
            if self.asked >= 0:
                left = self.asked - self.stats.samples
                piece, self.held = piece[:left], piece[left:]
            if self.stats.first_audio_s is None:
                self.stats.first_audio_s = time.perf_counter() - self._opened
            self.stats.samples += len(piece)
            yield piece

    def _next_piece(self) -> np.ndarray:
        """The next samples, made if need be: at most one slice of the codec."""
        if len(self.held):
            piece, self.held = self.held, np.empty(0, np.float32)
            return piece
        if not self.pending.shape[1]:
            self._synthesize(self._next_window())
        with self.stats.timed("codec"):
            piece = next(self.codec.decode(self.pending[:, :SLICE_FRAMES]))
        self.pending = self.pending[:, SLICE_FRAMES:]
        return piece

    def _next_window(self) -> WindowCall:
        """Step the language model until the next acoustic call can be made."""
        windows, emitted = self.settings.windows, self.stitcher.emitted
        total = None
        if self.asked >= 0:
            # Tokens that were made for a longer request are not taken back.
            total = max(token_count(self.asked), len(self.tokens))
        with self.stats.timed("lm"):
            for _ in range(tokens_needed(windows, emitted, total) - len(self.tokens)):
                self._step()
        call = next_call(windows, emitted, len(self.tokens), total)
        assert call is not None, "the plan wants tokens beyond those it asked for"
        return call

    def _step(self) -> None:
        if self.position >= limits.POSITION:
            raise SessionFailed(
                f"this session has reached position {limits.POSITION}, where the rotary tables end: open a new one"
            )
        result = self.lm.step()
        if result.failed:
            self._closed = True
            raise SessionFailed(self.lm.reason(0))
        self.tokens.append(int(result.tokens[0]))
        self.position += 1
        self.stats.tokens += 1

    def _synthesize(self, call: WindowCall) -> None:
        """One acoustic call: codes of the window, cut and laid behind those already pending."""
        with self.stats.timed("acoustic"):
            codes, known = self.stitcher.known(call)
            row = WindowRow(
                self.voice,
                self.tokens.read(call),
                codes[:, : int(known[0].sum())],
                lambda index, shape: acoustic_uniforms(self.settings.seed, call.start, index, shape),
            )
            sent = self.stitcher.push(call, self.model.decode_window(row, self.settings.acoustic))
        self.pending = np.concatenate([self.pending, sent], axis=1)
        self.tokens.drop(keep_from(self.settings.windows, self.stitcher.emitted, len(self.tokens)))
        self.stats.windows += 1

    # life

    def fork(self, *, seed: int | None = None) -> Session:
        """An independent session in the same state; with another ``seed`` it goes its own way from here."""
        self._check_open()
        twin = thaw(self.model, freeze(self))
        if seed is not None:
            twin.settings = replace(self.settings, seed=check_seed(seed))
            twin.lm.load(0, replace(twin.lm.save(0), seed=seed))
        return twin

    def snapshot(self, path: str | PathLike[str]) -> Path:
        """Write everything this session needs to go on elsewhere to one safetensors file."""
        self._check_open()
        return write_snapshot(Path(path), freeze(self), self.model.digest)

    def close(self) -> None:
        """Forget the state. A closed session cannot go on."""
        if not self._closed:
            self._closed = True
            self.lm.clear(0)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionFailed("this session is closed: open a new one, or restore it from a snapshot")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["DAY_SECONDS", "Session", "SessionSettings"]

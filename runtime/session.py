"""One stream being continued: prompt in, audio out for as long as asked, in constant memory.

    prompt --tokenize--> tokens --prefill--> LM state
    LM steps --> tokens --windows--> acoustic calls --> codes --stitch--> frames --codec--> audio

A session is a :class:`Stream` and the one language-model row that feeds it. It pulls: audio is made when
the caller asks for more, and between two pieces everything is in fields, so it can be snapshotted, forked
or dropped at any of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ
from speechssm.bundle import limits
from speechssm.errors import SessionFailed, SettingsError

from .acoustic import Voice
from .clock import SessionStats
from .frozen import Frozen
from .lm import LMRows
from .random import check_seed
from .session_settings import SessionSettings
from .settings import number
from .snapshot import write_snapshot
from .stages import Stages
from .stitch import CodeStitcher
from .stream import Stream
from .tokens import TokenBuffer

DAY_SECONDS = 86_400.0
"""Longest stream without ``unbounded``."""


class Session:
    """A stream of speech. Made by ``Model.open``, ``Model.restore`` or :meth:`fork`; not thread-safe.

    Audio is float32 (n), 16 kHz, mono.
    """

    def __init__(
        self, stages: Stages, settings: SessionSettings, voice: Voice, *, opened: float | None = None
    ) -> None:
        self._start(stages, Stream(stages, settings, voice), opened)

    def _start(self, stages: Stages, output: Stream, opened: float | None) -> None:
        self.stages = stages
        self.output = output
        self.lm = LMRows(stages.language_model, 1)
        self._opened = time.perf_counter() if opened is None else opened
        self._closed = False

    @property
    def settings(self) -> SessionSettings:
        """What was chosen when the session was opened."""
        return self.output.settings

    @property
    def voice(self) -> Voice:
        """The speaker prompt."""
        return self.output.voice

    @property
    def stats(self) -> SessionStats:
        """Counts and times so far."""
        return self.output.stats

    @property
    def tokens(self) -> TokenBuffer:
        """Tokens that may still be read."""
        return self.output.tokens

    @property
    def stitcher(self) -> CodeStitcher:
        """Codes that may still be read."""
        return self.output.stitcher

    @property
    def position(self) -> int:
        """LM position: prompt tokens and new ones."""
        return self.output.position

    def read_prompt(self, tokens: np.ndarray) -> None:
        """Feed the prompt's tokens (t) to the language model. Called once, on a new session."""
        self.lm.start(0, int(tokens[0]), self.settings.sampler, self.settings.seed)
        self.lm.prefill(0, tokens[1:].tolist())
        self.lm.active[0] = True
        self.output.position = len(tokens)

    # audio

    def stream(self, seconds: float = math.inf, *, unbounded: bool = False) -> Iterator[np.ndarray]:
        """Yield ``seconds`` more of new speech, in pieces of at most 2 s.

        Each call goes on where the last one stopped; the speech of a call is complete, to the sample,
        when its iterator ends. An endless stream (the default), or one past 24 h, needs ``unbounded``.

        Raises SettingsError for seconds that are not positive; SessionFailed, from the iterator, when
        the model's state is no longer usable; EngineError when an engine fails.
        """
        samples = length_in_samples(seconds, unbounded=unbounded)
        self.output.asked = self.stats.samples + samples if samples is not None else -1
        return self._run()

    def resume(self) -> Iterator[np.ndarray]:
        """Go on with an interrupted stream, to the end it was asked for."""
        return self._run()

    def _run(self) -> Iterator[np.ndarray]:
        while not self.output.done:
            self._check_open()
            if not self.output.has_audio:
                self._fill()
            piece = self.output.next_piece()
            if self.stats.first_audio_s is None:
                self.stats.first_audio_s = time.perf_counter() - self._opened
            yield piece

    def _fill(self) -> None:
        """Step the language model until the next acoustic call can be made, and make it."""
        with self.stats.timed("lm"):
            for _ in range(self.output.missing()):
                self._step()
        window = self.output.next_window()
        assert window is not None, "the plan wants tokens beyond those it asked for"
        with self.stats.timed("acoustic"):
            codes = self.stages.decode_window(window.row, self.settings.acoustic)
        self.output.push_codes(window.call, codes)

    def _step(self) -> None:
        self.output.check_position()
        result = self.lm.step()
        if result.failed:
            self._closed = True
            raise SessionFailed(self.lm.reason(0))
        self.output.push_token(int(result.tokens[0]))

    # life

    def fork(self, *, seed: int | None = None) -> Session:
        """An independent session in the same state; with another ``seed`` it goes its own way from here."""
        self._check_open()
        twin = Session.thaw(self.stages, self.freeze())
        if seed is not None:
            twin.output.settings = replace(self.settings, seed=check_seed(seed))
            twin.lm.load(0, replace(twin.lm.save(0), seed=seed))
            twin.lm.active[0] = True
        return twin

    def snapshot(self, path: str | PathLike[str]) -> Path:
        """Write everything this session needs to go on elsewhere to one safetensors file."""
        self._check_open()
        return write_snapshot(Path(path), self.freeze(), self.stages.digest)

    def freeze(self) -> Frozen:
        """A copy of the whole session as plain data."""
        return self.output.freeze(self.lm.save(0))

    @classmethod
    def thaw(cls, stages: Stages, frozen: Frozen) -> Session:
        """A session that goes on from ``frozen``. Raises SnapshotError when it does not fit ``stages``."""
        output, row = Stream.thaw(stages, frozen)
        session = cls.__new__(cls)
        session._start(stages, output, None)
        session.lm.load(0, row)
        session.lm.active[0] = True
        return session

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


def length_in_samples(seconds: float, *, unbounded: bool) -> int | None:
    """Samples of ``seconds`` of speech; None for no end. Raises SettingsError for a length that cannot be meant."""
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


__all__ = ["DAY_SECONDS", "Session", "SessionSettings", "length_in_samples"]

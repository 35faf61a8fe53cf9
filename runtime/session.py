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
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ
from speechssm.bundle import limits
from speechssm.errors import SessionFailed, SettingsError

from .acoustic import Voice, WindowRow
from .clock import SessionStats
from .codec import SLICE_FRAMES
from .frozen import Frozen, Tensors, check_tail, flat, grouped, parse_meta, settings_of
from .lm import LMRows, SavedRow
from .prompt import check_voice
from .random import acoustic_uniforms, check_seed
from .session_settings import SessionSettings
from .settings import number
from .snapshot import write_snapshot
from .stages import Stages
from .stitch import CodeStitcher
from .tokens import TokenBuffer
from .windows import WindowCall, keep_from, next_call, token_count, tokens_needed

DAY_SECONDS = 86_400.0
"""Longest stream without ``unbounded``."""


class Session:
    """A stream of speech. Made by ``Model.open``, ``Model.restore`` or :meth:`fork`; not thread-safe.

    Audio is float32 (n), 16 kHz, mono.
    """

    def __init__(
        self, stages: Stages, settings: SessionSettings, voice: Voice, *, opened: float | None = None
    ) -> None:
        self.stages = stages
        self.settings = settings
        self.voice = voice
        self.stats = SessionStats()
        self.lm = LMRows(stages.language_model, 1)
        self.tokens = TokenBuffer(settings.windows)
        self.stitcher = CodeStitcher(settings.windows, stages.levels)
        self.codec = stages.codec_stream()
        self.pending = np.empty((stages.levels, 0), np.int64)
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
            sent = self.stitcher.push(call, self.stages.decode_window(row, self.settings.acoustic))
        self.pending = np.concatenate([self.pending, sent], axis=1)
        self.tokens.drop(keep_from(self.settings.windows, self.stitcher.emitted, len(self.tokens)))
        self.stats.windows += 1

    # life

    def fork(self, *, seed: int | None = None) -> Session:
        """An independent session in the same state; with another ``seed`` it goes its own way from here."""
        self._check_open()
        twin = Session.thaw(self.stages, self.freeze())
        if seed is not None:
            twin.settings = replace(self.settings, seed=check_seed(seed))
            twin.lm.load(0, replace(twin.lm.save(0), seed=seed))
            twin.lm.active[0] = True
        return twin

    def snapshot(self, path: str | PathLike[str]) -> Path:
        """Write everything this session needs to go on elsewhere to one safetensors file."""
        self._check_open()
        return write_snapshot(Path(path), self.freeze(), self.stages.digest)

    def freeze(self) -> Frozen:
        """A copy of the whole session as plain data."""
        row, settings, stats = self.lm.save(0), self.settings, self.stats
        groups: dict[str, Tensors] = {
            "lm": row.state,
            "tokens": self.tokens.snapshot(),
            "stitch": self.stitcher.snapshot(),
            "codec": self.codec.snapshot(),
            "voice": {"tokens": self.voice.tokens, "codes": self.voice.codes},
            "tail": {"pending": self.pending.copy(), "held": self.held.copy()},
        }
        meta = {
            "seed": settings.seed,
            "sampler": asdict(settings.sampler),
            "windows": asdict(settings.windows),
            "acoustic": asdict(settings.acoustic),
            "token": row.token,
            "drawn": row.drawn,
            "position": self.position,
            "asked": self.asked,
            "samples": stats.samples,
            "tokens": stats.tokens,
            "window_calls": stats.windows,
        }
        return Frozen(meta, flat(groups))

    @classmethod
    def thaw(cls, stages: Stages, frozen: Frozen) -> Session:
        """A session that goes on from ``frozen``. Raises SnapshotError when it does not fit ``stages``."""
        meta = parse_meta(frozen.meta)
        groups = grouped(frozen.tensors)
        settings = settings_of(meta, stages.check)
        voice = Voice(**groups["voice"])
        vocab = stages.language_model.vocab
        check_voice(voice, vocab, stages.levels, stages.codes)
        check_tail(groups["tail"], stages.levels, stages.codes)
        session = cls(stages, settings, voice)
        session.lm.load(0, SavedRow(groups["lm"], meta.token, meta.drawn, meta.seed, settings.sampler))
        session.lm.active[0] = True
        session.tokens.restore(groups["tokens"], vocab)
        session.stitcher.restore(groups["stitch"])
        session.codec.restore(groups["codec"])
        session.pending, session.held = groups["tail"]["pending"], groups["tail"]["held"]
        session.position, session.asked = meta.position, meta.asked
        session.stats.samples, session.stats.tokens = meta.samples, meta.tokens
        session.stats.windows = meta.window_calls
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


__all__ = ["DAY_SECONDS", "Session", "SessionSettings"]

"""One stream behind its language model: tokens in, audio out, with no model row of its own.

    push_token --> tokens --next_window--> acoustic stage --push_codes--> pending --next_piece--> audio

A session feeds a stream from a row of its own; the service feeds many from rows they share. Both make
the same calls with the same shapes in the same order, so both make the same samples. Tokens and windows
may run ahead of the codec: what a call is depends on what was sent, never on what was heard.

Everything is in plain fields between two calls: a stream can be frozen, thawed or dropped at any of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechssm.axes import FRAME_SAMPLES, SAMPLE_RATE_HZ
from speechssm.bundle import limits
from speechssm.errors import SessionFailed

from .acoustic import Voice, WindowRow
from .clock import SessionStats
from .codec import SLICE_FRAMES
from .frozen import (
    Frozen,
    Tensors,
    check_sent,
    check_tail,
    check_together,
    flat,
    grouped,
    parse_meta,
    settings_of,
)
from .lm import SavedRow
from .prompt import check_voice
from .random import acoustic_uniforms
from .session_settings import SessionSettings
from .stitch import CodeStitcher
from .tokens import TokenBuffer
from .windows import WindowCall, keep_from, next_call, token_count, tokens_needed

if TYPE_CHECKING:
    from .stages import Stages


@dataclass(frozen=True)
class Window:
    """An acoustic call that can be made now: its place in the stream, and what goes into it."""

    call: WindowCall
    row: WindowRow


class Stream:
    """Tokens to audio, float32 (n) at 16 kHz. Not thread-safe."""

    def __init__(self, stages: Stages, settings: SessionSettings, voice: Voice) -> None:
        self.settings = settings
        self.voice = voice
        self.stats = SessionStats()
        self.tokens = TokenBuffer(settings.windows)
        self.stitcher = CodeStitcher(settings.windows, stages.levels)
        self.codec = stages.codec_stream()
        self.pending = np.empty((stages.levels, 0), np.int64)
        """Codes (q,f) stitched but not yet decoded."""
        self.held = np.empty(0, np.float32)
        """Samples decoded but not yet given out."""
        self.asked = 0
        """Samples asked for so far, -1 for no end."""
        self.position = 0
        """LM position: prompt tokens and new ones."""

    # length

    @property
    def done(self) -> bool:
        """Whether every sample asked for was given out."""
        return 0 <= self.asked <= self.stats.samples

    @property
    def made(self) -> int:
        """Samples that codes exist for, given out or not."""
        return self.stats.samples + len(self.held) + self.pending.shape[1] * FRAME_SAMPLES

    @property
    def total(self) -> int | None:
        """Tokens the stream will have; None when it has no end."""
        # Tokens that were made for a longer request are not taken back.
        return None if self.asked < 0 else max(token_count(self.asked), len(self.tokens))

    @property
    def complete(self) -> bool:
        """Whether no further window is needed for what is asked."""
        return 0 <= self.asked <= self.made

    # tokens

    def missing(self) -> int:
        """Tokens still to be pushed before the next window can be made; 0 when it can, or none is needed."""
        if self.complete:
            return 0
        wanted = tokens_needed(self.settings.windows, self.stitcher.emitted, self.total)
        return max(0, wanted - len(self.tokens))

    def push_token(self, token: int) -> None:
        """Add the next token."""
        self.tokens.append(token)
        self.position += 1
        self.stats.tokens += 1

    def check_position(self) -> None:
        """Raise SessionFailed where the rotary tables end; asked before a step."""
        if self.position >= limits.POSITION:
            raise SessionFailed(
                f"this session has reached position {limits.POSITION}, where the rotary tables end: open a new one"
            )

    # windows

    def next_window(self) -> Window | None:
        """The acoustic call to make now, or None while tokens are missing or nothing is left to make.

        Asking changes nothing: a call that was given up can be asked for again.
        """
        if self.complete:
            return None
        call = next_call(self.settings.windows, self.stitcher.emitted, len(self.tokens), self.total)
        if call is None:
            return None
        codes, known = self.stitcher.known(call)
        seed = self.settings.seed
        row = WindowRow(
            self.voice,
            self.tokens.read(call),
            codes[:, : int(known[0].sum())],
            lambda index, shape: acoustic_uniforms(seed, call.start, index, shape),
        )
        return Window(call, row)

    def push_codes(self, call: WindowCall, codes: np.ndarray) -> None:
        """Take the codes (q, 2t) of that call, cut them, and lay them behind those already pending."""
        sent = self.stitcher.push(call, codes)
        self.pending = np.concatenate([self.pending, sent], axis=1)
        self.tokens.drop(keep_from(self.settings.windows, self.stitcher.emitted, len(self.tokens)))
        self.stats.windows += 1

    # audio

    @property
    def has_audio(self) -> bool:
        """Whether :meth:`next_piece` has something to give."""
        return not self.done and bool(len(self.held) or self.pending.shape[1])

    def next_piece(self) -> np.ndarray:
        """The next samples, at most one slice of the codec and never past what is asked for.

        Only while :attr:`has_audio`. Raises SessionFailed when the codec's audio is not finite.
        """
        if len(self.held):
            piece, self.held = self.held, np.empty(0, np.float32)
        else:
            with self.stats.timed("codec"):
                piece = next(self.codec.decode(self.pending[:, :SLICE_FRAMES]))
            self.pending = self.pending[:, SLICE_FRAMES:]
        if self.asked >= 0:
            left = self.asked - self.stats.samples
            piece, self.held = piece[:left], piece[left:]
        self.stats.samples += len(piece)
        return piece

    @property
    def ahead_s(self) -> float:
        """Seconds of speech made but not given out."""
        return (self.made - self.stats.samples) / SAMPLE_RATE_HZ

    # plain data

    def freeze(self, row: SavedRow, unread: np.ndarray | None = None) -> Frozen:
        """A copy of the whole session as plain data, ``row`` being its language-model row.

        ``unread`` (n) are the last samples given out, when whoever took them has not passed them on: the
        copy gives them out again.
        """
        settings, stats = self.settings, self.stats
        unread = np.empty(0, np.float32) if unread is None else unread
        groups: dict[str, Tensors] = {
            "lm": row.state,
            "tokens": self.tokens.snapshot(),
            "stitch": self.stitcher.snapshot(),
            "codec": self.codec.snapshot(),
            "voice": {"tokens": self.voice.tokens, "codes": self.voice.codes},
            "tail": {"pending": self.pending.copy(), "held": np.concatenate([unread, self.held])},
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
            "samples": stats.samples - len(unread),
            "tokens": stats.tokens,
            "window_calls": stats.windows,
        }
        return Frozen(meta, flat(groups))

    @classmethod
    def thaw(cls, stages: Stages, frozen: Frozen) -> tuple[Stream, SavedRow]:
        """A stream and its row that go on from ``frozen``. Raises SnapshotError when it does not fit."""
        meta = parse_meta(frozen.meta)
        groups = grouped(frozen.tensors)
        settings = settings_of(meta, stages.check)
        voice = Voice(**groups["voice"])
        vocab = stages.language_model.vocab
        check_voice(voice, vocab, stages.levels, stages.codes)
        check_tail(groups["tail"], stages.levels, stages.codes)
        check_sent(groups["stitch"], stages.codes)
        stream = cls(stages, settings, voice)
        stream.tokens.restore(groups["tokens"], vocab)
        stream.stitcher.restore(groups["stitch"])
        stream.codec.restore(groups["codec"])
        check_together(meta, groups, settings.windows)
        stream.pending, stream.held = groups["tail"]["pending"], groups["tail"]["held"]
        stream.position, stream.asked = meta.position, meta.asked
        stream.stats.samples, stream.stats.tokens = meta.samples, meta.tokens
        stream.stats.windows = meta.window_calls
        return stream, SavedRow(groups["lm"], meta.token, meta.drawn, meta.seed, settings.sampler)

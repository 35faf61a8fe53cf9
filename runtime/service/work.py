"""The real things behind the scheduler's protocol: streams, a pool of model rows, acoustic batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.bundle import state_bytes
from speechssm.errors import SessionFailed

from ..acoustic import WindowDecoder
from ..frozen import Frozen
from ..lm import LMRows, Prefill, SavedRow
from ..prompt import tokenize_by_window
from ..random import check_seed
from ..session_settings import SessionSettings
from ..stages import Stages
from ..stream import Stream, Window
from .view import WindowKey


class Speaker:
    """One session without a row: a :class:`Body`. Made new from recordings, or thawed."""

    def __init__(
        self,
        stages: Stages,
        settings: SessionSettings,
        audio: np.ndarray,
        other: np.ndarray | None,
        asked: int,
    ) -> None:
        """``audio`` and ``other`` (n) are prompt and speaker recording, ``asked`` samples or -1 for no end."""
        self._stages = stages
        self.settings = settings
        self.stream: Stream | None = None
        self.saved: SavedRow | None = None
        self.asked = asked
        # Asked of every session in every cycle, so it is counted once.
        self._state_bytes = sum(map(state_bytes, (stages.language_model.schema, stages.codec_schema)))
        self._audio: np.ndarray | None = audio
        self._other = other
        self._chunk = 1
        self._reading: Generator[None, None, None] | None = self._read()
        self.prompt_tokens = 0

    @classmethod
    def thawed(cls, stages: Stages, frozen: Frozen, seed: int | None = None) -> Speaker:
        """One that goes on from ``frozen``, with another seed if one is given. Raises SnapshotError."""
        stream, saved = Stream.thaw(stages, frozen)
        if seed is not None:
            stream.settings = replace(stream.settings, seed=check_seed(seed))
            saved = replace(saved, seed=seed)
        body = cls(stages, stream.settings, np.empty(0, np.float32), None, stream.asked)
        body.stream, body.saved, body._audio, body._reading = stream, saved, None, None
        return body

    def _read(self) -> Generator[None, None, None]:
        stages, settings = self._stages, self.settings
        assert self._audio is not None
        audio, other = self._audio, self._other
        tokens = yield from tokenize_by_window(stages.graphs("tokenizer"), audio)
        its_tokens = (
            tokens if other is None else (yield from tokenize_by_window(stages.graphs("tokenizer"), other))
        )
        voice = stages.voice(audio if other is None else other, its_tokens)
        self._audio = self._other = None
        yield
        prefill = Prefill(stages.language_model, tokens.tolist(), settings.sampler, settings.seed)
        with stages.language_model.reading():
            while prefill.left:
                prefill.step(self._chunk)
                yield
        stream = Stream(stages, settings, voice)
        stream.position, stream.asked = len(tokens), self.asked
        self.saved, self.stream = prefill.saved(), stream

    # Body

    @property
    def _out(self) -> Stream:
        assert self.stream is not None, "its prompt is not read yet"
        return self.stream

    @property
    def complete(self) -> bool:
        """See :class:`Body`."""
        return self._out.complete

    @property
    def done(self) -> bool:
        """See :class:`Body`."""
        return self._out.done

    @property
    def has_audio(self) -> bool:
        """See :class:`Body`."""
        return self._out.has_audio

    @property
    def made(self) -> int:
        """See :class:`Body`."""
        return self._out.made

    @property
    def given(self) -> int:
        """See :class:`Body`."""
        return self._out.stats.samples

    @property
    def passes(self) -> int:
        """See :class:`Body`."""
        return self.settings.acoustic.passes(self._stages.levels)

    @property
    def bucket(self) -> int:
        """See :class:`Body`."""
        return self.settings.windows.window

    @property
    def nbytes(self) -> int:
        """See :class:`Body`."""
        waiting = sum(audio.nbytes for audio in (self._audio, self._other) if audio is not None)
        return waiting + self._state_bytes

    @property
    def prompt_s(self) -> float:
        """See :class:`Body`."""
        return sum(len(a) for a in (self._audio, self._other) if a is not None) / SAMPLE_RATE_HZ

    def read(self, tokens: int) -> bool:
        """See :class:`Body`."""
        if self._reading is not None:
            self._chunk = tokens
            if next(self._reading, self) is not self:
                return False
            self._reading = None
        return True

    def missing(self) -> int:
        """See :class:`Body`."""
        return self._out.missing()

    def window(self) -> WindowKey | None:
        """See :class:`Body`."""
        window = self._out.next_window()
        return None if window is None else WindowKey(window.call.bucket, self.settings.acoustic)

    def piece(self) -> np.ndarray:
        """See :class:`Body`."""
        return self._out.next_piece()


class Windows:
    """Windows of several speakers, decoded together: a :class:`Batch`."""

    def __init__(self, stages: Stages, bodies: Sequence[Speaker]) -> None:
        self._bodies = bodies
        self._windows: list[Window] = []
        for body in bodies:
            window = body._out.next_window()
            assert window is not None, "a batch needs windows that can be made"
            self._windows.append(window)
        rows = [window.row for window in self._windows]
        self._decoder = WindowDecoder(stages.acoustic_pass(), rows, bodies[0].settings.acoustic)

    @property
    def done(self) -> bool:
        """See :class:`Batch`."""
        return self._decoder.done

    @property
    def passes(self) -> int:
        """See :class:`Batch`."""
        return self._decoder.passes

    def step(self) -> None:
        """See :class:`Batch`."""
        self._decoder.step()

    def finish(self, wanted: Sequence[bool]) -> list[Exception | None]:
        """See :class:`Batch`."""
        results: list[Exception | None] = []
        codes = self._decoder.result()
        for i, (body, window) in enumerate(zip(self._bodies, self._windows, strict=True)):
            error: Exception | None = None
            if wanted[i] and i in self._decoder.failed:
                error = SessionFailed(
                    "the acoustic stage's confidences are not finite: check the bundle with 'speechssm verify'"
                )
            elif wanted[i]:
                try:
                    body._out.push_codes(window.call, codes[i])
                except SessionFailed as reason:
                    error = reason
            results.append(error)
        return results


class Workshop:
    """Model rows and the acoustic stage of one bundle: an :class:`Engine`."""

    def __init__(self, stages: Stages, rows: int) -> None:
        self.stages = stages
        self.rows = LMRows(stages.language_model, rows)

    def seat(self, body: Speaker, row: int) -> None:
        """See :class:`Engine`."""
        assert body.saved is not None
        self.rows.load(row, body.saved)
        self.rows.active[row] = True
        body.saved = None

    def unseat(self, body: Speaker, row: int) -> None:
        """See :class:`Engine`."""
        body.saved = self.rows.save(row)
        self.rows.clear(row)

    def move(self, body: Speaker, source: int, target: int) -> None:
        """See :class:`Engine`."""
        self.rows.load(target, self.rows.save(source))
        self.rows.active[target] = True
        self.rows.clear(source)

    def drop(self, row: int) -> None:
        """See :class:`Engine`."""
        self.rows.clear(row)

    def step(self, bodies: Sequence[Speaker]) -> list[Exception | None]:
        """See :class:`Engine`."""
        over: dict[int, Exception] = {}
        for row, body in enumerate(bodies):
            try:
                body._out.check_position()
            except SessionFailed as error:
                over[row] = error
                self.rows.active[row] = False
        result = self.rows.step(len(bodies))
        failed = set(result.failed)
        outcome: list[Exception | None] = []
        for row, body in enumerate(bodies):
            if row in failed:
                outcome.append(SessionFailed(self.rows.reason(row)))
            else:
                outcome.append(over.get(row))
                if row not in over:
                    body._out.push_token(int(result.tokens[row]))
        return outcome

    def begin(self, bodies: Sequence[Speaker]) -> Windows:
        """See :class:`Engine`."""
        return Windows(self.stages, bodies)

    def freeze(self, body: Speaker, row: int | None, unread: np.ndarray) -> Frozen:
        """See :class:`Engine`."""
        saved = body.saved if row is None else self.rows.save(row)
        assert saved is not None
        return body._out.freeze(saved, unread)

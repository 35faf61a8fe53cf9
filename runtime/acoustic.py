"""The acoustic stage's host loop: which codes become known, in which pass (SoundStorm, arXiv 2305.09636).

A window starts with the codes of its speaker prompt, and of speech already sent, and nothing else. Levels
are filled coarse to fine. The first takes 16 passes: each predicts every unknown frame, keeps the most
confident ones and leaves the rest for the next pass; how many are left follows a cosine. A finer level
takes one greedy pass, since the levels above it leave little to choose. Windows of several sessions go
through together, each with its own random numbers: what a row becomes depends on that row alone.

    left after pass i of N  =  floor(frames cos(pi/2 i/N)),  at least one less each pass
    confidence              =  log p(code) + choice_temperature (1 - i/N) gumbel

The arithmetic is in pure functions above, the arrays below. Nothing here knows an engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import TOKEN_FRAMES
from speechssm.engines.protocol import Graph
from speechssm.errors import SettingsError

from .settings import TEMPERATURE_MAX, number, whole

ITERATIONS_MAX = 256
"""Most passes over one level; more than a few dozen change nothing that can be heard."""
LEVELS_MAX = 64
"""Most levels a schedule may name."""

Uniforms = Callable[[int, tuple[int, ...]], NDArray[np.float32]]
"""``uniforms(i, shape)``: numbers in [0, 1) of pass ``i`` of one row's window, the same at every call."""


# ---- the schedule ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AcousticSchedule:
    """How many passes each level takes, and how its codes are chosen.

    ``iterations`` are passes per level, coarse to fine; the last number serves all finer levels.
    ``temperature`` is that of sampling a code, ``choice_temperature`` the weight of Gumbel noise in the
    choice of frames. The last pass over a level is always greedy; before it the temperature falls
    linearly, or stays, and the Gumbel weight falls linearly.

    Raises SettingsError for a value outside its range.
    """

    iterations: tuple[int, ...] = (16, 1)
    temperature: float = 1.0
    choice_temperature: float = 1.0
    annealing: Literal["linear", "constant"] = "linear"

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, tuple) or not 1 <= len(self.iterations) <= LEVELS_MAX:
            raise SettingsError(
                f"iterations is {self.iterations!r}: give a tuple of passes per level, such as (16, 1)"
            )
        for passes in self.iterations:
            whole("iterations", passes, 1, ITERATIONS_MAX)
        number("temperature", self.temperature, 0.0, TEMPERATURE_MAX)
        number("choice_temperature", self.choice_temperature, 0.0, TEMPERATURE_MAX)
        if self.annealing not in ("linear", "constant"):
            raise SettingsError(f"annealing is {self.annealing!r}: give 'linear' or 'constant'")

    def of_level(self, level: int) -> int:
        """Passes over ``level``, 0 being the coarsest."""
        return self.iterations[min(level, len(self.iterations) - 1)]

    def passes(self, levels: int) -> int:
        """Passes over a window of ``levels`` levels; SettingsError when the schedule names more."""
        if len(self.iterations) > levels + 1:  # the last number may serve no level
            raise SettingsError(
                f"iterations names {len(self.iterations)} levels, the bundle has {levels}: give fewer numbers"
            )
        return sum(self.of_level(level) for level in range(levels))

    def temperature_at(self, iteration: int, iterations: int) -> float:
        """Sampling temperature of pass ``iteration`` (from 0) of ``iterations``; 0, greedy, in the last."""
        if iteration == iterations - 1:
            return 0.0
        return self.temperature * (1 - iteration / (iterations - 1) if self.annealing == "linear" else 1.0)

    def choice_at(self, iteration: int, iterations: int) -> float:
        """Weight of the Gumbel noise in pass ``iteration`` (from 0) of ``iterations``; 0 in the last."""
        return self.choice_temperature * (1 - (iteration + 1) / iterations)


DEFAULT_SCHEDULE = AcousticSchedule()
"""SoundStorm's: 16 passes over the first level and one over each finer one, 23 for 8 levels."""
FAST_SCHEDULE = AcousticSchedule(iterations=(1,))
"""One greedy pass a level: 8 for 8 levels, about a third of the default's time."""
SCHEDULES = {"default": DEFAULT_SCHEDULE, "fast": FAST_SCHEDULE}
"""Published schedules by name."""


def left_after(frames: int, iterations: int) -> tuple[int, ...]:
    """Frames still unknown after each of ``iterations`` passes over ``frames`` unknown ones.

    A cosine that falls by at least one each pass while frames remain, and ends at 0.
    """
    left, plan = frames, []
    for i in range(1, iterations + 1):
        # The small term keeps a cosine of exactly one half from depending on the maths library.
        ideal = 0 if i == iterations else math.floor(frames * math.cos(math.pi / 2 * i / iterations) + 1e-9)
        left = max(0, min(ideal, left - 1))
        plan.append(left)
    return tuple(plan)


def most_confident(confidence: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """Indices of the ``count`` largest of ``confidence`` (f); the earlier of equals, NaN last."""
    return np.argsort(-confidence, kind="stable")[:count]


def gumbel(uniform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Gumbel noise of uniforms that are multiples of 2^-24 in [0, 1): taken at the middle of their steps."""
    return -np.log(-np.log(uniform.astype(np.float64) + 2.0**-25))


# ---- one pass ----------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What windows take from their speaker prompts, the same in every pass, in a model of l layers.

    ``keys`` (b,l,h,k,p) and ``values`` (b,l,h,p,k) are the prompt's of every layer, ``voice`` (b,d) its pooled
    encoding.
    """

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    voice: NDArray[np.float32]


class AcousticPass(Protocol):
    """The acoustic stage's two graphs."""

    def listen(self, tokens: NDArray[np.int64], codes: NDArray[np.int64]) -> Told:
        """Speaker prompts, tokens (b,75) and codes (b,q,150), -> what their windows take from them."""

    def __call__(
        self,
        told: Told,
        tokens: NDArray[np.int64],
        codes: NDArray[np.int64],
        known: NDArray[np.bool_],
        level: int,
        temperature: float,
        noise: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """tokens (b,t), codes and known (b,q,f), noise (b,f) -> the level's codes and confidences (b,f)."""


class GraphPass:
    """A bundle's graphs ``acoustic_prompt`` and ``acoustic`` as an :class:`AcousticPass`."""

    def __init__(self, prompt: Graph, window: Graph) -> None:
        self._prompt = prompt
        self._window = window

    def listen(self, tokens: NDArray[np.int64], codes: NDArray[np.int64]) -> Told:
        """See :class:`AcousticPass`."""
        return Told(*self._prompt.call({"tokens": tokens, "codes": codes}, Told._fields))

    def __call__(
        self,
        told: Told,
        tokens: NDArray[np.int64],
        codes: NDArray[np.int64],
        known: NDArray[np.bool_],
        level: int,
        temperature: float,
        noise: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See :class:`AcousticPass`."""
        inputs = {"tokens": tokens, "codes": codes, "known": known, "noise": noise, **told._asdict()}
        inputs["level"] = np.array(level, np.int64)
        inputs["temperature"] = np.array(temperature, np.float32)
        chosen, confidence = self._window.call(inputs, ("codes_out", "confidence"))
        return chosen, confidence


# ---- a batch of windows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Voice:
    """The speaker prompt of a session: ``tokens`` (p) and ``codes`` (q, 2p); p is 75, 3 s."""

    tokens: NDArray[np.int64]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class WindowRow:
    """One window of one session.

    ``tokens`` (t) are the window's, the prompt not among them; ``sent`` (q, up to 2t) the codes of its
    first frames that are already out and must stay; ``uniforms`` the row's random numbers.
    """

    voice: Voice
    tokens: NDArray[np.int64]
    sent: NDArray[np.int64]
    uniforms: Uniforms


@dataclass(frozen=True)
class _Pass:
    """Pass ``iteration`` of ``iterations`` over ``level``, ``index`` in the window; ``counts`` (b) frames."""

    level: int
    iteration: int
    iterations: int
    index: int
    counts: list[int]


class WindowDecoder:
    """Decodes windows of one shape together, one pass at a time, so that other work fits in between.

    ``codes`` and ``known`` are (b,q,f) of the windows; ``failed`` the rows whose confidences were
    not finite: their codes mean nothing, their neighbours' do.
    """

    def __init__(self, run: AcousticPass, rows: Sequence[WindowRow], schedule: AcousticSchedule) -> None:
        """Raises SettingsError when the rows differ in shape, or the schedule names levels they lack."""
        _check(rows)
        self._run = run
        self._schedule = schedule
        self._uniforms = [row.uniforms for row in rows]
        self.tokens = np.stack([row.tokens for row in rows]).astype(np.int64)
        levels, frames = len(rows[0].voice.codes), self.tokens.shape[1] * TOKEN_FRAMES
        self.codes = np.zeros((len(rows), levels, frames), np.int64)
        self.known = np.zeros((len(rows), levels, frames), np.bool_)
        for i, row in enumerate(rows):
            self.codes[i, :, : row.sent.shape[1]] = row.sent
            self.known[i, :, : row.sent.shape[1]] = True
        self._voices = [row.voice for row in rows]
        self._told: Told | None = None
        self.failed: set[int] = set()
        self.passes = schedule.passes(levels)
        self._plan = self._passes(levels)
        self._next = next(self._plan, None)

    @property
    def done(self) -> bool:
        """Whether every code is known."""
        return self._next is None

    def step(self) -> None:
        """Run one pass and make its most confident codes known. Does nothing once done."""
        if self._next is None:
            return
        if self._told is None:
            self._told = self._run.listen(
                np.stack([voice.tokens for voice in self._voices]).astype(np.int64),
                np.stack([voice.codes for voice in self._voices]).astype(np.int64),
            )
        now = self._next
        level = now.level
        temperature = self._schedule.temperature_at(now.iteration, now.iterations)
        choice = self._schedule.choice_at(now.iteration, now.iterations)
        rows, _, frames = self.known.shape
        noise = np.zeros((rows, frames), np.float32)
        hesitation = np.zeros((rows, frames))
        if temperature > 0 or choice > 0:
            for row, uniforms in enumerate(self._uniforms):
                # By frame first: a longer window of the ramp draws the same numbers for the same frames.
                drawn = uniforms(now.index, (frames, 2))
                noise[row] = drawn[:, 0]
                hesitation[row] = choice * gumbel(drawn[:, 1])
        chosen, confidence = self._run(
            self._told, self.tokens, self.codes, self.known, level, temperature, noise
        )
        for row, count in enumerate(now.counts):
            unknown = np.flatnonzero(~self.known[row, level])
            if not np.isfinite(confidence[row, unknown]).all():
                self.failed.add(row)
            picked = unknown[most_confident((confidence[row] + hesitation[row])[unknown], count)]
            self.codes[row, level, picked] = chosen[row, picked]
            self.known[row, level, picked] = True
        self._next = next(self._plan, None)

    def result(self) -> list[NDArray[np.int64]]:
        """Codes (q, 2t) of each row's window; all of them known once done."""
        return [codes.copy() for codes in self.codes]

    def _passes(self, levels: int) -> Iterator[_Pass]:
        """What is left to do, in order. Each level is planned when the ones above it are known.

        A pass that no row needs is left out, but keeps its index: random numbers belong to an index.
        """
        first = 0
        for level in range(levels):
            iterations = self._schedule.of_level(level)
            unknown = [int(n) for n in (~self.known[:, level]).sum(axis=1)]
            plans = [(n, *left_after(n, iterations)) for n in unknown]
            for i in range(iterations):
                counts = [plan[i] - plan[i + 1] for plan in plans]
                if any(counts):
                    yield _Pass(level, i, iterations, first + i, counts)
            first += iterations


def decode_windows(
    run: AcousticPass, rows: Sequence[WindowRow], schedule: AcousticSchedule = DEFAULT_SCHEDULE
) -> tuple[list[NDArray[np.int64]], set[int]]:
    """All passes of :class:`WindowDecoder`: codes (q, 2t) of each row, and the rows that failed."""
    decoder = WindowDecoder(run, rows, schedule)
    while not decoder.done:
        decoder.step()
    return decoder.result(), decoder.failed


def _check(rows: Sequence[WindowRow]) -> None:
    if not rows:
        raise SettingsError("there is no window to decode: give at least one row")
    first = rows[0]
    levels, prompt, tokens = len(first.voice.codes), len(first.voice.tokens), len(first.tokens)
    for i, row in enumerate(rows):
        if len(row.voice.tokens) != prompt or len(row.tokens) != tokens:
            raise SettingsError(
                f"row {i} has {len(row.voice.tokens)} + {len(row.tokens)} tokens, row 0 {prompt} + {tokens}:"
                " windows of one call have one shape"
            )
        if row.voice.codes.shape != (levels, prompt * TOKEN_FRAMES):
            raise SettingsError(
                f"row {i}: the prompt's codes are {row.voice.codes.shape}; {prompt} tokens need"
                f" ({levels}, {prompt * TOKEN_FRAMES})"
            )
        if row.sent.ndim != 2 or row.sent.shape[0] != levels or row.sent.shape[1] > tokens * TOKEN_FRAMES:
            raise SettingsError(
                f"row {i}: the codes already sent are {row.sent.shape}; a window of {tokens} tokens takes"
                f" ({levels}, at most {tokens * TOKEN_FRAMES})"
            )

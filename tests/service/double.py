"""A model without an engine: the scheduler's protocol in plain integers, with faults on demand.

A session's audio is a function of its seed alone, so a test can say what every reader must get: whatever
the scheduler does with rows, batches, forks and neighbours, the samples must be these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from speechssm.errors import EngineError, SessionFailed
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.frozen import Frozen
from speechssm.runtime.service.view import WindowKey

SAMPLES = 320
"""Samples of one token; a round part of a second."""
WINDOW = 5
"""Tokens of one window."""
SLICE = 2
"""Tokens decoded at a time."""
SCHEDULES = (AcousticSchedule(iterations=(1,)), AcousticSchedule(iterations=(2, 1)))


def audio_of(seed: int, tokens: int) -> np.ndarray:
    """What a session of ``seed`` says, one number a token."""
    said, state = [], seed
    for _ in range(tokens):
        state = _next(state)
        said.append(state)
    return np.repeat(np.array(said, np.float32), SAMPLES)


def _next(state: int) -> int:
    return (state * 48_271 + 11) % 65_521


@dataclass
class Faults:
    """What goes wrong: sessions whose state fails at a token, and calls that fail as a whole."""

    unhealthy: dict[int, int] = field(default_factory=dict)
    """Seed of the session to the token at which its state fails."""
    bad_windows: dict[int, int] = field(default_factory=dict)
    """Seed to the window that comes out not finite."""
    poison: set[int] = field(default_factory=set)
    """Seeds that make any call fail in which they take part."""
    once: dict[str, int] = field(default_factory=dict)
    """Kind of call ('step', 'pass', 'begin', 'read', 'piece') to how many more calls fail."""

    def strike(self, kind: str, seeds: Sequence[int]) -> None:
        if self.once.get(kind, 0) > 0:
            self.once[kind] -= 1
            raise EngineError(f"the {kind} failed")
        if self.poison & set(seeds):
            raise EngineError(f"the {kind} fails with this session")


@dataclass
class Body:
    """One session: ``state`` is None while it is in a row."""

    seed: int
    asked: int
    faults: Faults
    to_read: int = 2
    schedule: AcousticSchedule = SCHEDULES[0]
    state: int | None = None
    tokens: list[int] = field(default_factory=list)
    coded: int = 0
    given: int = 0
    windows: int = 0
    held: list[float] = field(default_factory=list)
    nbytes: int = 1000
    bucket: int = WINDOW
    passes: int = 2

    def __post_init__(self) -> None:
        if self.state is None:
            self.state = self.seed

    @property
    def total(self) -> int:
        return -(-self.asked // SAMPLES)

    @property
    def prompt_s(self) -> float:
        return float(self.to_read)

    @property
    def made(self) -> int:
        return min(self.asked, self.coded * SAMPLES)

    @property
    def complete(self) -> bool:
        return self.coded >= self.total

    @property
    def done(self) -> bool:
        return self.given >= self.asked

    @property
    def has_audio(self) -> bool:
        return self.given < self.made

    def read(self, tokens: int) -> bool:
        self.faults.strike("read", [self.seed])
        self.to_read = max(0, self.to_read - 1)
        return self.to_read == 0

    def missing(self) -> int:
        return max(0, min(self.total, self.coded + WINDOW) - len(self.tokens))

    def window(self) -> WindowKey | None:
        return None if self.complete or self.missing() else WindowKey(WINDOW, self.schedule)

    def piece(self) -> np.ndarray:
        self.faults.strike("piece", [self.seed])
        end = min(self.made, self.given + SLICE * SAMPLES)
        audio = np.repeat(np.array(self.tokens, np.float32), SAMPLES)[self.given : end]
        self.given = end
        return audio

    def twin(self) -> Body:
        return replace(self, tokens=list(self.tokens), held=list(self.held))


class Batch:
    def __init__(self, engine: Engine, bodies: Sequence[Body]) -> None:
        assert len({b.schedule for b in bodies}) == 1
        assert not any(b.missing() or b.complete for b in bodies)
        self.engine, self.bodies, self.left, self.passes = engine, list(bodies), 2, 2

    @property
    def done(self) -> bool:
        return self.left == 0

    def step(self) -> None:
        self.engine.faults.strike("pass", [b.seed for b in self.bodies])
        assert self.left
        self.left -= 1

    def finish(self, wanted: Sequence[bool]) -> list[Exception | None]:
        results: list[Exception | None] = []
        for body, is_wanted in zip(self.bodies, wanted, strict=True):
            error = None
            if is_wanted:
                body.windows += 1
                if self.engine.faults.bad_windows.get(body.seed) == body.windows:
                    error = SessionFailed("not finite")
                else:
                    body.coded = len(body.tokens)
            results.append(error)
        return results


class Engine:
    """Rows as a list; a row that is not where the scheduler thinks it is fails the test."""

    def __init__(self, rows: int, faults: Faults) -> None:
        self.rows: list[tuple[Body, int] | None] = [None] * rows
        self.faults = faults
        self.stepped: list[tuple[int, ...]] = []

    def seat(self, body: Body, row: int) -> None:
        assert self.rows[row] is None
        assert body.state is not None
        self.rows[row], body.state = (body, body.state), None

    def unseat(self, body: Body, row: int) -> None:
        held = self.rows[row]
        assert held is not None
        assert held[0] is body
        body.state, self.rows[row] = held[1], None

    def move(self, body: Body, source: int, target: int) -> None:
        held = self.rows[source]
        assert held is not None
        assert held[0] is body
        assert self.rows[target] is None or source == target
        self.rows[source], self.rows[target] = None, held

    def drop(self, row: int) -> None:
        assert self.rows[row] is not None
        self.rows[row] = None

    def step(self, bodies: Sequence[Body]) -> list[Exception | None]:
        self.faults.strike("step", [b.seed for b in bodies])
        self.stepped.append(tuple(b.seed for b in bodies))
        results: list[Exception | None] = []
        for row, body in enumerate(bodies):
            held = self.rows[row]
            assert held is not None
            assert held[0] is body, "the rows are not where the scheduler thinks"
            if self.faults.unhealthy.get(body.seed) == len(body.tokens):
                results.append(SessionFailed("not finite"))
                continue
            token = _next(held[1])
            self.rows[row] = (body, token)
            body.tokens.append(token)
            results.append(None)
        assert all(held is None for held in self.rows[len(bodies) :]), "a row outside the step holds a state"
        return results

    def begin(self, bodies: Sequence[Body]) -> Batch:
        self.faults.strike("begin", [b.seed for b in bodies])
        return Batch(self, bodies)

    def freeze(self, body: Body, row: int | None, unread: np.ndarray) -> Frozen:
        twin = body.twin()
        held = self.rows[row] if row is not None else None
        twin.state = body.state if held is None else held[1]
        twin.given -= len(unread)
        return Frozen({"body": twin}, {})

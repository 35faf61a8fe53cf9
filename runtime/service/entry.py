"""One session as the scheduler keeps it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic

from speechssm.axes import SAMPLE_RATE_HZ

from .costs import Costs
from .outlet import Outlet
from .protocol import B, Batch
from .slack import Playback
from .view import SessionView, Stage, WindowKey

NEXT_S = 1e-6
"""Between what is due of two sessions that start: the one that came first is finished with first."""


@dataclass
class Group(Generic[B]):
    """An acoustic batch and the sessions it works for; None where one has gone away."""

    number: int
    key: WindowKey
    batch: Batch
    members: list[Entry[B] | None]
    flying: Future[float] | None = None
    """Its pass in a lane, which gives the seconds it took."""


@dataclass
class Entry(Generic[B]):
    """A session: its body, its way to the reader, and where it stands.

    ``missing``, ``window`` and ``complete`` are what the body last said; :meth:`look` asks again.
    """

    number: int
    key: str
    body: B
    playback: Playback
    realtime: bool
    arrived: float
    stage: Stage = Stage.QUEUED
    outlet: Outlet = field(default_factory=Outlet)
    paused: bool = False
    row: int | None = None
    group: Group[B] | None = None
    missing: int = 0
    window: WindowKey | None = None
    complete: bool = False
    skip: int = 0
    """Samples that the reader already has from before a restart; made again and not given out."""
    full_since: float | None = None
    first_audio_s: float | None = None
    given_at: float | None = None
    checkpointed: float = 0.0
    on_end: Callable[[Entry[B]], None] | None = None

    def look(self) -> None:
        """Ask the body where it stands."""
        self.complete = self.body.complete
        self.missing = 0 if self.complete else self.body.missing()
        self.window = None if self.complete or self.missing else self.body.window()

    def view(self, costs: Costs, start_by: float = 0.0) -> SessionView:
        """This moment, as values; before its first audio a session is due at ``start_by`` at the earliest."""
        if self.stage == Stage.ENDED:
            return SessionView(self.number, Stage.ENDED, ends=self.outlet.ends)
        body = self.body
        due = self.playback.due
        starting = self.realtime and self.first_audio_s is None
        cost, ahead, has_audio, audio_due = 0.0, 0.0, False, due
        if self.stage == Stage.LIVE:
            waiting = body.made - body.given
            # What a reader already has from before a restart is no audio for it.
            useful = max(0, waiting - self.skip)
            has_audio = body.has_audio
            ahead = self.outlet.unread_s + useful / SAMPLE_RATE_HZ
            audio_due, due = self.playback.dry_at(), self.playback.dry_at(useful)
            if not self.complete:
                bucket = self.window.bucket if self.window else body.bucket
                cost = costs.ahead_of_codes(self.missing, bucket, body.passes)
        if starting:
            audio_due = due = max(due, start_by + NEXT_S * self.number)
        return SessionView(
            self.number, self.stage, self.paused, self.realtime,
            self.realtime and not starting, starting, self.complete, self.missing, self.window,
            None if self.group is None else self.group.number, self.row, has_audio, self.outlet.unread_s, ahead,
            audio_due, due, cost, body.nbytes, body.prompt_s, self.outlet.ends,
        )  # fmt: skip

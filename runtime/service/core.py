"""The scheduler: plan, execute, commit, one unit of work at a time.

Everything here runs in one thread, between two calls of an engine, and knows neither engine nor thread.
A unit that fails takes down the session it fails for and no other: what failed as a whole is done again
one session at a time, which changes nobody's audio, because a row never depends on its neighbours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic

import numpy as np

from speechssm.errors import CapacityError

from ..frozen import Frozen
from .admission import Load, promoted, refusal
from .costs import Costs
from .entry import Entry, Group
from .failure import failure_of
from .limits import ServiceLimits
from .metrics import Metrics, Tally, quantiles
from .outlet import End, Outlet
from .plan import Kind, Work, plan
from .protocol import B, Engine
from .slack import Playback, offline, slack
from .view import BatchView, ServiceView, Stage


class Scheduler(Generic[B]):
    """Sessions from admission to their one terminal event.

    ``interrupted`` says that a command waits: a burst of steps ends early for it. ``clock`` is monotonic
    seconds.
    """

    def __init__(
        self,
        engine: Engine[B],
        limits: ServiceLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        interrupted: Callable[[], bool] = lambda: False,
        lanes: Executor | None = None,
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.entries: dict[int, Entry[B]] = {}
        """By number, the ended ones not among them."""
        self.seats: list[Entry[B]] = []
        self.groups: dict[int, Group[B]] = {}
        self.tally = Tally()
        self.costs = Costs()
        self.clock = clock
        self.on_live: Callable[[Entry[B]], None] = lambda entry: None
        """Told of a session that begins to speak, before its first step here."""
        self._interrupted = interrupted
        self._lanes = lanes
        self._flying: list[Group[B]] = []
        self._numbers = 0
        self._since_read = 1 << 30
        self._last_step: tuple[float, frozenset[int]] | None = None

    # commands

    def submit(
        self, key: str, body: B, *, realtime: bool, skip: int = 0, outlet: Outlet | None = None
    ) -> Entry[B]:
        """Admit a session. Raises CapacityError with the reason when there is no room."""
        if any(entry.key == key for entry in self.entries.values()):
            self.tally.refused += 1
            raise CapacityError(f"session {key!r} is already here: wait for its end or cancel it")
        queued = [e for e in self.entries.values() if e.stage == Stage.QUEUED]
        nbytes = sum(e.body.nbytes for e in self.entries.values())
        load = Load(
            len(queued), sum(e.body.prompt_s for e in queued), len(self.entries) - len(queued), nbytes
        )
        no = refusal(self.limits, load, body.prompt_s, body.nbytes)
        if no is not None:
            self.tally.refused += 1
            raise CapacityError(f"refused ({no.code}): {no.why}")
        now = self.clock()
        playback = Playback(now + self.limits.start_s) if realtime else offline()
        entry = Entry(self._numbers, key, body, playback, realtime, now, skip=skip, checkpointed=now)
        entry.outlet = outlet or entry.outlet
        self._numbers += 1
        self.entries[entry.number] = entry
        self.tally.submitted += 1
        self._promote()
        return entry

    def cancel(self, entry: Entry[B], asked: float | None = None) -> None:
        """End a session before the next unit of work. Does nothing once it has ended.

        ``asked`` is when; its reader may have had the end then.
        """
        if entry.stage != Stage.ENDED:
            self._end(entry, End("cancelled"))
            self.tally.cancel.append(self.clock() - (self.clock() if asked is None else asked))

    def fail(self, entry: Entry[B], code: str, message: str) -> None:
        """End a session that cannot go on for a reason outside its work."""
        if entry.stage != Stage.ENDED:
            self._end(entry, End("failed", code, message))

    def pause(self, entry: Entry[B], paused: bool = True) -> None:
        """Leave a session as it is, or let it go on."""
        if entry.stage != Stage.ENDED:
            entry.paused = paused
            if paused and entry.row is not None:
                self._unseat(entry)

    def freeze(self, entry: Entry[B]) -> Frozen:
        """A session as plain data, what its reader has not taken included. Only while LIVE."""
        assert entry.stage == Stage.LIVE, "a session can be frozen while it speaks"
        assert not entry.skip, "a session can be frozen when it has caught up with its reader"
        return self.engine.freeze(entry.body, entry.row, entry.outlet.unread())

    # one cycle

    def cycle(self) -> bool:
        """One unit of work; False when there was none, but passes may be flying."""
        landed = self._land()
        view = self.view()
        work = plan(view, self.limits)
        if work is None:
            return landed
        entries = [self.entries[number] for number in work.sessions]
        if work.kind == Kind.READ:
            self._read(entries[0], work.amount)
        elif work.kind == Kind.SLICE:
            self._slice(entries[0])
        elif work.kind == Kind.BEGIN:
            self._begin(entries)
        elif work.kind == Kind.PASS:
            assert work.batch is not None
            self._pass(self.groups[work.batch])
        else:
            self._steps(entries, work)
        self._promote()
        return True

    def view(self) -> ServiceView:
        """This moment, as values."""
        number = {id(entry): entry.number for entry in self.seats}
        groups = tuple(
            BatchView(
                g.number,
                g.key,
                tuple(e.number for e in g.members if e is not None),
                len(g.members),
                g.flying is not None,
            )
            for g in self.groups.values()
        )
        now = self.clock()
        start_by = now + self.limits.settled_s
        return ServiceView(
            now, tuple(e.view(self.costs, start_by) for e in self.entries.values()), groups,
            tuple(number[id(e)] for e in self.seats), self._since_read,
            self.limits.lanes - len(self._flying), dict(self.costs.row_s),
        )  # fmt: skip

    # reading

    def _promote(self) -> None:
        queue = [e.number for e in self.entries.values() if e.stage == Stage.QUEUED]
        if not queue:
            return
        for number in promoted(self.limits, len(self.entries) - len(queue), queue):
            self.entries[number].stage = Stage.READING

    def _read(self, entry: Entry[B], tokens: int) -> None:
        self._since_read = 0
        started = self.clock()
        try:
            read = entry.body.read(tokens)
        except Exception as error:
            self._fail(entry, error)
            return
        finally:
            self.tally.stage_s["read"] += self.clock() - started
        if read:
            entry.stage = Stage.LIVE
            self.on_live(entry)
            self._look(entry)

    # language model

    def _steps(self, entries: list[Entry[B]], work: Work) -> None:
        started = self.clock()
        if not self._take_seats(entries):
            return
        self.tally.stage_s["other"] += self.clock() - started
        for _ in range(work.amount):
            if not self._step() or self._interrupted() or self.landing:
                break

    def _take_seats(self, entries: list[Entry[B]]) -> bool:
        wanted = {entry.number for entry in entries}
        for entry in [e for e in self.seats if e.number not in wanted]:
            self._unseat(entry)
        for entry in entries:
            if entry.row is None:
                try:
                    self.engine.seat(entry.body, len(self.seats))
                except Exception as error:
                    self._fail(entry, error)
                    continue
                entry.row = len(self.seats)
                self.seats.append(entry)
        return bool(self.seats)

    def _step(self) -> bool:
        """One step of everyone seated; False when who is seated has changed."""
        before = list(self.seats)
        started = self.clock()
        try:
            results = self.engine.step([entry.body for entry in before])
        except Exception:
            self._step_alone(before)
            return False
        now = self.clock()
        self.costs.stepped(now - started)
        self.tally.stage_s["lm"] += now - started
        self._count_step(before, now)
        same = True
        for entry, error in zip(before, results, strict=True):
            same &= self._stepped(entry, error)
        return same

    def _step_alone(self, entries: list[Entry[B]]) -> None:
        """The step failed as a whole: one session at a time, so that only those it fails for end."""
        self.tally.retried += 1
        self._since_read += 1
        self._last_step = None
        for entry in entries:
            self._unseat(entry)
        for entry in entries:
            outcome: Exception | None
            try:
                self.engine.seat(entry.body, 0)
                entry.row = 0
                self.seats.append(entry)
                (outcome,) = self.engine.step([entry.body])
            except Exception as error:
                outcome = error
            if self._stepped(entry, outcome) and entry.row is not None:
                self._unseat(entry)

    def _stepped(self, entry: Entry[B], error: Exception | None) -> bool:
        """Commit one session's step; False when it leaves its row."""
        if error is not None:
            self._fail(entry, error)
            return False
        self.tally.tokens += 1
        entry.missing -= 1
        if entry.missing == 0:
            self._unseat(entry)
            self._look(entry)
            return False
        return True

    def _count_step(self, entries: list[Entry[B]], now: float) -> None:
        numbers = frozenset(entry.number for entry in entries)
        if self._last_step is not None and numbers & self._last_step[1]:
            self.tally.step_gap.append(now - self._last_step[0])
        self._last_step = (now, numbers)
        self._since_read += 1
        self.tally.steps += 1

    def _unseat(self, entry: Entry[B]) -> None:
        """Take a session out of its row; the last row moves into the gap."""
        assert entry.row is not None
        row = entry.row
        self.engine.unseat(entry.body, row)
        self._close_gap(entry, row)

    def _close_gap(self, entry: Entry[B], row: int) -> None:
        entry.row = None
        last = self.seats.pop()
        if last is not entry:
            self.engine.move(last.body, len(self.seats), row)
            self.seats[row] = last
            last.row = row

    # acoustic stage

    def _begin(self, entries: list[Entry[B]]) -> None:
        key = entries[0].window
        assert key is not None
        started = self.clock()
        try:
            batch = self.engine.begin([entry.body for entry in entries])
        except Exception as error:
            self._split(entries, error)
            return
        number = 1 + max(self.groups, default=-1)
        group = Group(number, key, batch, list[Entry[B] | None](entries))
        self.groups[number] = group
        for entry in entries:
            entry.group = group
        self.tally.batches += 1
        self._spend(group, self.clock() - started)
        self._pass(group)

    def _pass(self, group: Group[B]) -> None:
        if self._lanes is not None:
            group.flying = self._lanes.submit(self._timed, group.batch.step)
            self._flying.append(group)
            return
        started = self.clock()
        try:
            group.batch.step()
        except Exception as error:
            self._spend(group, self.clock() - started)
            self._dissolve(group, error)
            return
        self._passed(group, self.clock() - started)

    def _timed(self, step: Callable[[], None]) -> float:
        started = self.clock()
        step()
        return self.clock() - started

    def _passed(self, group: Group[B], seconds: float) -> None:
        self.costs.passed(group.key.bucket, len(group.members), seconds)
        self._spend(group, seconds)
        if group.batch.done:
            self._finish(group)

    @property
    def landing(self) -> bool:
        """Whether a pass in a lane is done and waits to be committed."""
        return any(group.flying is not None and group.flying.done() for group in self._flying)

    def _land(self) -> bool:
        """Commit the passes that are done; whether there was one."""
        done = [group for group in self._flying if group.flying is not None and group.flying.done()]
        for group in done:
            self._flying.remove(group)
            flight, group.flying = group.flying, None
            assert flight is not None
            error = flight.exception()
            if self.groups.get(group.number) is not group:  # everybody has gone away meanwhile
                self._spend(group, 0.0 if error else flight.result())
            elif error is None:
                self._passed(group, flight.result())
            elif isinstance(error, Exception):
                self._dissolve(group, error)
            else:
                raise error
        return bool(done)

    def _spend(self, group: Group[B], seconds: float) -> None:
        self.tally.stage_s["acoustic"] += seconds
        gone = sum(entry is None for entry in group.members)
        self.tally.orphaned_s += seconds * gone / len(group.members)

    def _finish(self, group: Group[B]) -> None:
        del self.groups[group.number]
        wanted = [entry is not None for entry in group.members]
        try:
            results = group.batch.finish(wanted)
        except Exception as error:
            results = [error] * len(wanted)
        for entry, reason in zip(group.members, results, strict=True):
            if entry is None:
                continue
            entry.group = None
            if reason is not None:
                self._fail(entry, reason)
            else:
                self.tally.windows += 1
                self._look(entry)

    def _dissolve(self, group: Group[B], error: Exception) -> None:
        del self.groups[group.number]
        entries = [entry for entry in group.members if entry is not None]
        for entry in entries:
            entry.group = None
        self._split(entries, error)

    def _split(self, entries: list[Entry[B]], error: Exception) -> None:
        """A batch failed as a whole: each window again, alone; a window that was alone has failed."""
        if len(entries) == 1:
            self._fail(entries[0], error)
            return
        self.tally.retried += 1
        for entry in entries:
            self._begin([entry])

    # audio

    def _slice(self, entry: Entry[B]) -> None:
        started = self.clock()
        try:
            piece = entry.body.piece()
        except Exception as error:
            self._fail(entry, error)
            return
        finally:
            self.tally.stage_s["codec"] += self.clock() - started
        if entry.skip:
            dropped = min(entry.skip, len(piece))
            entry.skip -= dropped
            piece = piece[dropped:]
        if len(piece):
            self._give(entry, piece)
        self._look(entry)

    def _give(self, entry: Entry[B], piece: np.ndarray) -> None:
        now = self.clock()
        if entry.first_audio_s is None:
            entry.first_audio_s = now - entry.arrived
            self.tally.first_audio.append(entry.first_audio_s)
        if entry.realtime and entry.given_at is not None:
            self.tally.piece_gap.append(now - entry.given_at)
        entry.given_at = now
        late = entry.playback.give(len(piece), now)
        if late:
            self.tally.underruns += 1
            self.tally.stalled_s += late
        self.tally.samples += len(piece)
        entry.outlet.put(piece)

    # ends

    def _look(self, entry: Entry[B]) -> None:
        try:
            if entry.body.done:
                self._end(entry, End("finished"))
            else:
                entry.look()
        except Exception as error:
            self._fail(entry, error)

    def _fail(self, entry: Entry[B], error: Exception) -> None:
        self._end(entry, failure_of(error))

    def _end(self, entry: Entry[B], end: End) -> None:
        """Release everything a session holds, then tell its reader."""
        if entry.row is not None:
            row = entry.row
            self.engine.drop(row)
            self._close_gap(entry, row)
        if entry.group is not None:
            self._leave(entry)
        entry.stage = Stage.ENDED
        del self.entries[entry.number]
        end = entry.outlet.finish(end)
        if end.kind == "failed":
            self.tally.failed[end.code] += 1
        elif end.kind == "finished":
            self.tally.finished += 1
        else:
            self.tally.cancelled += 1
        if entry.on_end is not None:
            entry.on_end(entry)
        self._promote()

    def _leave(self, entry: Entry[B]) -> None:
        group = entry.group
        assert group is not None
        entry.group = None
        group.members = [None if other is entry else other for other in group.members]
        if not any(group.members):
            del self.groups[group.number]

    def expire(self) -> None:
        """Fail sessions whose reader has not taken anything for too long."""
        now = self.clock()
        for entry in list(self.entries.values()):
            if entry.paused or entry.outlet.unread_s < self.limits.buffer_s:
                entry.full_since = None
            elif entry.full_since is None:
                entry.full_since = now
            elif now - entry.full_since > self.limits.idle_s:
                why = f"nobody took its audio for {self.limits.idle_s:g} s: resume it from its checkpoint"
                self.fail(entry, "idle", why)

    # numbers

    def metrics(self) -> Metrics:
        """Everything counted so far."""
        tally, now = self.tally, self.clock()
        entries = list(self.entries.values())
        stages = [entry.stage for entry in entries]
        views = [entry.view(self.costs) for entry in entries if entry.stage != Stage.QUEUED]
        spare = [slack(v.codes_due, v.cost_s, now) for v in views if v.realtime and not v.complete]
        return Metrics(
            queued=stages.count(Stage.QUEUED),
            reading=stages.count(Stage.READING),
            live=stages.count(Stage.LIVE),
            paused=sum(entry.paused for entry in entries),
            submitted_total=tally.submitted,
            refused_total=tally.refused,
            finished_total=tally.finished,
            cancelled_total=tally.cancelled,
            failed_total=dict(tally.failed),
            samples_total=tally.samples,
            tokens_total=tally.tokens,
            steps_total=tally.steps,
            rows_per_step=tally.tokens / max(1, tally.steps),
            windows_total=tally.windows,
            windows_per_batch=tally.windows / max(1, tally.batches),
            stage_s=dict(tally.stage_s),
            first_audio_s=quantiles(tally.first_audio),
            step_gap_s=quantiles(tally.step_gap),
            piece_gap_s=quantiles(tally.piece_gap),
            cancel_s=quantiles(tally.cancel),
            underruns_total=tally.underruns,
            stalled_s=tally.stalled_s,
            slack_s=min(spare, default=math.inf),
            state_bytes=sum(entry.body.nbytes for entry in entries),
            buffered_s=sum(entry.outlet.unread_s for entry in entries),
            orphaned_s=tally.orphaned_s,
            checkpoints_total=tally.checkpoints,
            checkpoint_failures_total=tally.checkpoint_failures,
            checkpoint_error=tally.checkpoint_error,
            retried_total=tally.retried,
        )

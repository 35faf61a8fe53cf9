"""What the planner and the validator see of a service: plain values, never the things themselves."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from ..acoustic import AcousticSchedule


class Stage(IntEnum):
    """Where a session is in its life. It only ever moves down this list."""

    QUEUED = 0
    """Admitted, nothing done."""
    READING = 1
    """Its prompt is being tokenized and fed."""
    LIVE = 2
    """Speaking."""
    ENDED = 3
    """Finished, cancelled or failed; it holds nothing."""


class WindowKey(NamedTuple):
    """Windows with the same key can be decoded together: one shape, one schedule."""

    bucket: int
    """Tokens of the call."""
    schedule: AcousticSchedule


class SessionView(NamedTuple):
    """One session at one moment. Times are seconds on the service's clock."""

    number: int
    """Order of arrival."""
    stage: Stage
    paused: bool = False
    realtime: bool = False
    playing: bool = False
    """Real-time, and its listener has had the first audio."""
    starting: bool = False
    """Real-time, and its listener waits for the first audio."""
    complete: bool = False
    """Codes exist for everything asked."""
    missing: int = 0
    """Steps until its next window can be made."""
    window: WindowKey | None = None
    """The window it could begin now."""
    batch: int | None = None
    """The acoustic batch that holds its window."""
    row: int | None = None
    """Its row of the language model."""
    has_audio: bool = False
    """The codec has something to decode."""
    buffered_s: float = 0.0
    """Audio its reader has not taken."""
    ahead_s: float = 0.0
    """Speech made that its reader has not taken, as codes or audio."""
    audio_due: float = 0.0
    """When its reader runs dry of audio; infinite for offline jobs."""
    codes_due: float = 0.0
    """When it would run dry if everything made were decoded."""
    cost_s: float = 0.0
    """Work before its next codes exist, as far as known."""
    nbytes: int = 0
    prompt_s: float = 0.0
    ends: int = 0
    """Terminal events it has given."""


class BatchView(NamedTuple):
    """An acoustic batch in work."""

    number: int
    key: WindowKey
    members: tuple[int, ...]
    """Sessions that still want their window; those cancelled are no longer named."""
    rows: int
    """Rows it was begun with."""
    flying: bool = False
    """A pass of it runs right now, in a lane."""


class ServiceView(NamedTuple):
    """Everything at one moment."""

    now: float
    sessions: tuple[SessionView, ...]
    """By order of arrival."""
    batches: tuple[BatchView, ...]
    seats: tuple[int, ...]
    """Session of each row of the language model, from row 0 without gaps."""
    since_read: int = 1 << 30
    """Steps since a piece of a prompt was read."""
    lanes: int = 0
    """Lanes in which no pass runs."""
    row_s: Mapping[int, float] = MappingProxyType({})
    """Seconds that an acoustic pass takes a row, by bucket, as far as known."""

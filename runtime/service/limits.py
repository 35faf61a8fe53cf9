"""What a service may hold and how far it works ahead: every bound by name, checked where it enters."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..settings import number, whole

MIB = 1 << 20


@dataclass(frozen=True)
class ServiceLimits:
    """Bounds of one service. Counts are sessions unless named otherwise, times are seconds.

    Memory is at most ``state_mib`` for sessions and queued prompts, plus what readers have not taken:
    ``sessions`` times ``buffer_s`` of audio and ``lookahead_s`` and one window of codes.

    Raises SettingsError for a value outside its range.
    """

    sessions: int = 64
    """Sessions that are being worked on; later ones wait."""
    rows: int = 16
    """Most rows of one language-model step."""
    queue: int = 256
    """Sessions that wait; later ones are refused."""
    queue_prompt_s: float = 3600.0
    """Seconds of prompts that wait, together."""
    prompt_s: float = 600.0
    """Longest prompt or speaker recording."""
    state_mib: int = 4096
    """Bytes of sessions and waiting prompts, in MiB."""
    buffer_s: float = 8.0
    """Audio made but not taken by the reader; past it the session is paused, and only it."""
    lookahead_s: float = 20.0
    """Speech made but not heard, as codes or audio; below it the next window is begun."""
    start_s: float = 1.0
    """When a real-time session without audio counts as late, after its arrival."""
    settled_s: float = 4.0
    """A listener with less speech ahead than this goes before those who have not heard anything yet."""
    idle_s: float = 600.0
    """How long a full buffer may stay untouched before the session is failed as abandoned."""
    pass_tokens: int = 800
    """Most tokens (rows times bucket) of one acoustic pass. On a CPU rows past this save nothing."""
    unit_s: float = 0.2
    """Longest acoustic pass of several rows, as measured here: what a cancel or a more urgent one waits for."""
    steps_beside: int = 40
    """Steps between two pieces of prompts while listeners decode: fewer than one gap in twenty is longer."""
    lanes: int = 0
    """Acoustic passes that run beside everything else, each in a thread of its own; with 0 they take turns with
    the rest. For models loaded with ``threads=1``: one less than there are cores."""
    burst: int = 8
    """Most steps between two plans; a command ends a burst early."""
    snapshots: int = 1024
    """Sessions whose checkpoints are kept on disk; the oldest finished ones go first."""

    def __post_init__(self) -> None:
        counts = {
            "sessions": 1 << 16, "rows": 1 << 12, "queue": 1 << 20, "state_mib": 1 << 24, "pass_tokens": 1 << 24,
            "steps_beside": 1 << 16, "lanes": 1 << 10, "burst": 1 << 10, "snapshots": 1 << 20,
        }  # fmt: skip
        for name, largest in counts.items():
            whole(name, getattr(self, name), 0 if name in ("queue", "lanes") else 1, largest)
        spans = {
            "queue_prompt_s": 1e9, "prompt_s": 3600.0, "buffer_s": 120.0, "lookahead_s": 600.0, "start_s": 3600.0,
            "idle_s": 1e9, "unit_s": 1e9, "settled_s": 600.0,
        }  # fmt: skip
        for name, longest in spans.items():
            number(name, getattr(self, name), 0.0 if name == "queue_prompt_s" else 1e-3, longest)
        whole("snapshots", self.snapshots, self.sessions, 1 << 20)

    @property
    def state_bytes(self) -> int:
        """``state_mib`` in bytes."""
        return self.state_mib * MIB

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers by name."""
        return dataclasses.asdict(self)

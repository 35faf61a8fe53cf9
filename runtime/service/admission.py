"""Who may come in, who waits, and who is turned away: arithmetic on counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .limits import ServiceLimits


class Load(NamedTuple):
    """What a service holds. ``queued`` and ``working`` are sessions; paused ones work too."""

    queued: int
    queued_prompt_s: float
    working: int
    nbytes: int
    """Bytes of all sessions, those waiting included."""


class Refusal(NamedTuple):
    """Why a session cannot come in. ``again`` is False when it never could."""

    code: str
    why: str
    again: bool


def refusal(limits: ServiceLimits, load: Load, prompt_s: float, nbytes: int) -> Refusal | None:
    """Whether a session with a prompt of ``prompt_s`` and ``nbytes`` of state must be turned away."""
    if prompt_s > limits.prompt_s:
        why = f"the prompt lasts {prompt_s:.1f} s, this service takes at most {limits.prompt_s:g} s: cut it"
        return Refusal("prompt", why, again=False)
    if nbytes > limits.state_bytes:
        why = f"one session takes {nbytes} bytes, this service holds {limits.state_bytes}: raise state_mib"
        return Refusal("bytes", why, again=False)
    if load.nbytes + nbytes > limits.state_bytes:
        why = f"sessions hold {load.nbytes} of {limits.state_bytes} bytes: try again when some have ended"
        return Refusal("bytes", why, again=True)
    if load.queued or load.working >= limits.sessions:
        if load.queued >= limits.queue:
            why = f"{load.working} sessions work and {load.queued} wait: try again when some have ended"
            return Refusal("queue", why, again=True)
        if load.queued_prompt_s + prompt_s > limits.queue_prompt_s:
            why = f"{load.queued_prompt_s:.0f} s of prompts wait: try again when some have ended"
            return Refusal("queue", why, again=True)
    return None


def promoted(limits: ServiceLimits, working: int, queue: Sequence[int]) -> tuple[int, ...]:
    """Sessions of ``queue``, first come first, that may start now."""
    return tuple(queue[: max(0, limits.sessions - working)])

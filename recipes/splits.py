"""The held-out rule, in one place: no training list of any stage may touch what :func:`held_out` names.

- LibriSpeech speakers whose id is divisible by 10;
- kathleen sentences whose arctic number is divisible by 10, by sentence (many are recorded twice);
- all of *Alice's Adventures in Wonderland*, text and speech, whoever reads it;
- Kokoro voices bm_lewis, af_kore and am_adam, whatever they read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

HELD_OUT_VOICES = frozenset({"bm_lewis", "af_kore", "am_adam"})
HELD_OUT_TEXTS = ("alice",)
"""A file whose name contains one of these words is held out."""
EVERY = 10


class Recording(Protocol):
    """What the rule looks at: ``corpus``, file ``stem`` and ``speaker``."""

    @property
    def corpus(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def speaker(self) -> str: ...


R = TypeVar("R", bound=Recording)
_ARCTIC = re.compile(r"^arctic_[ab](\d{4})(_|$)")


def held_out_text(name: str) -> bool:
    """Whether a text, by its file name, is held out."""
    return any(word in name.lower() for word in HELD_OUT_TEXTS)


def held_out(recording: Recording) -> bool:
    """Whether a recording is held out. Raises ValueError for a corpus or name the rule does not know."""
    if recording.corpus == "librispeech":
        return int(recording.stem.split("-")[0]) % EVERY == 0
    if recording.corpus == "kathleen":
        match = _ARCTIC.match(recording.stem)
        if match is None:
            raise ValueError(
                f"kathleen recording {recording.stem!r} has no arctic number: extend recipes/splits.py"
            )
        return int(match.group(1)) % EVERY == 0
    if recording.corpus in ("stories_speech", "stories_text", "synthetic"):
        return recording.speaker in HELD_OUT_VOICES or held_out_text(recording.stem)
    raise ValueError(f"no held-out rule for corpus {recording.corpus!r}: add one to recipes/splits.py")


def training(recordings: Iterable[R]) -> list[R]:
    """The recordings a stage may train on."""
    return [r for r in recordings if not held_out(r)]


def testing(recordings: Iterable[R]) -> list[R]:
    """The recordings a stage may only be judged on."""
    return [r for r in recordings if held_out(r)]


def refuse_held_out(recordings: Sequence[Recording]) -> None:
    """Raise ValueError if a list meant for training holds a held-out recording; stages call it before they train."""
    bad = [f"{r.corpus}/{r.stem} ({r.speaker})" for r in recordings if held_out(r)]
    if bad:
        raise ValueError(f"{len(bad)} held-out recordings are in a training list, the first is {bad[0]}")

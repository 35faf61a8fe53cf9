"""A session as plain data: what a snapshot file holds, and what a fork copies.

Numbers and settings go in ``meta`` (JSON), arrays in ``tensors``. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechssm.axes import FRAME_SAMPLES, TOKEN_SAMPLES
from speechssm.bundle import limits
from speechssm.errors import SettingsError, SnapshotError

from .acoustic import AcousticSchedule
from .session_settings import SessionSettings
from .settings import SamplerSettings
from .windows import WindowSettings, keep_from

SCHEMA = 1
"""Version of the snapshot schema. A reader takes this one and refuses newer ones by number."""

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Frozen:
    """A session's whole state."""

    meta: dict[str, Any]
    tensors: Tensors


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Sampler(_Strict):
    temperature: float
    top_k: int
    top_p: float


class _Windows(_Strict):
    window: int
    overlap: int
    ramp: bool


class _Acoustic(_Strict):
    iterations: tuple[int, ...]
    temperature: float
    choice_temperature: float
    annealing: str


class Meta(_Strict):
    """The JSON half of a snapshot, checked before a tensor is looked at."""

    seed: int = Field(ge=0, lt=1 << 64)
    sampler: _Sampler
    windows: _Windows
    acoustic: _Acoustic
    token: int = Field(ge=0)
    drawn: int = Field(ge=0, le=limits.POSITION)
    position: int = Field(ge=0, le=limits.POSITION)
    asked: int = Field(ge=-1, lt=1 << 62)
    samples: int = Field(ge=0, lt=1 << 62)
    tokens: int = Field(ge=0)
    window_calls: int = Field(ge=0)


def parse_meta(meta: dict[str, Any]) -> Meta:
    """Check the JSON half. Raises SnapshotError naming the first thing that is wrong."""
    try:
        return Meta.model_validate(_tuples(meta))
    except ValidationError as error:
        first = error.errors()[0]
        raise SnapshotError(
            f"the snapshot is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


def _tuples(meta: dict[str, Any]) -> dict[str, Any]:
    acoustic = meta.get("acoustic")
    if isinstance(acoustic, dict) and isinstance(acoustic.get("iterations"), list):
        return meta | {"acoustic": acoustic | {"iterations": tuple(acoustic["iterations"])}}
    return meta


def settings_of(
    meta: Meta, check: Callable[[SamplerSettings, WindowSettings, AcousticSchedule], None]
) -> SessionSettings:
    """The settings in ``meta``, if ``check`` (the bundle) can run them. Raises SnapshotError."""
    try:
        settings = SessionSettings(
            seed=meta.seed,
            sampler=SamplerSettings(**meta.sampler.model_dump()),
            windows=WindowSettings(**meta.windows.model_dump()),
            acoustic=AcousticSchedule(**meta.acoustic.model_dump()),
        )
        check(settings.sampler, settings.windows, settings.acoustic)
    except SettingsError as error:
        raise SnapshotError(f"the snapshot's settings cannot be used: {error}") from error
    return settings


GROUPS: dict[str, set[str] | None] = {
    "lm": None,
    "tokens": {"head", "tail", "start"},
    "stitch": {"codes", "place"},
    "codec": None,
    "voice": {"tokens", "codes"},
    "tail": {"pending", "held"},
}
"""Groups of tensors and the names in them; None where whoever restores the group checks it."""
_WHOLE = ("tokens", "stitch", "voice")
"""Groups that hold int64 only."""


def flat(groups: Mapping[str, Tensors]) -> Tensors:
    """Tensors of all groups as ``group.name``."""
    return {f"{group}.{name}": array for group, tensors in groups.items() for name, array in tensors.items()}


def grouped(tensors: Tensors) -> dict[str, Tensors]:
    """The reverse of :func:`flat`. Raises SnapshotError for a name or a number no session has."""
    groups: dict[str, Tensors] = {group: {} for group in GROUPS}
    for name, array in tensors.items():
        group, _, rest = name.partition(".")
        if group not in groups:
            raise SnapshotError(f"the snapshot holds a tensor {name}, which no session of this version has")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SnapshotError(
                f"tensor {name} of the snapshot is not finite: a session cannot go on from it"
            )
        if group in _WHOLE and array.dtype != np.int64:
            raise SnapshotError(f"tensor {name} of the snapshot is {array.dtype}, not int64: it is damaged")
        groups[group][rest] = array
    for group, names in GROUPS.items():
        if names is not None and groups[group].keys() != names:
            raise SnapshotError(f"the snapshot is damaged: its {group} needs {' and '.join(sorted(names))}")
    return groups


def check_sent(group: Tensors, codes: int) -> None:
    """Raise SnapshotError unless the codes kept for later windows are this model's."""
    sent = group["codes"]
    if sent.size and not (sent.min() >= 0 and sent.max() < codes):
        raise SnapshotError(f"the snapshot's sent codes lie outside this model's {codes}")


def check_tail(group: Tensors, levels: int, codes: int) -> None:
    """Raise SnapshotError unless codes not yet decoded (q,f) and samples not yet given out (n) fit."""
    pending, held = group["pending"], group["held"]
    if pending.dtype != np.int64 or pending.ndim != 2 or len(pending) != levels:
        raise SnapshotError(
            "the snapshot's pending codes have another shape than this model's: it is of another bundle"
        )
    if pending.size and not (pending.min() >= 0 and pending.max() < codes):
        raise SnapshotError(f"the snapshot's pending codes lie outside this model's {codes}")
    if held.dtype != np.float32 or held.ndim != 1:
        raise SnapshotError("the snapshot's pending audio is not float32 samples")


def check_together(meta: Meta, groups: Mapping[str, Tensors], windows: WindowSettings) -> None:
    """Raise SnapshotError unless the parts of a snapshot, each sound alone, are of one moment of a stream.

    Called when tokens, codes and tail were restored, so their own shapes and ranges are known to be right.
    """
    tokens, stitch, tail = (groups[name] for name in ("tokens", "stitch", "tail"))
    # Whether the row's tensors are the model's is seen when they are loaded.
    position = groups["lm"].get("position", np.array(meta.position - 1))
    start, made = int(tokens["start"][0]), int(tokens["start"][0]) + len(tokens["tail"])
    first, sent = (int(token) for token in stitch["place"])
    waiting = tail["pending"].shape[1] * FRAME_SAMPLES + len(tail["held"])
    # Steps that an interruption cut short leave tokens that nothing was made of yet.
    sound = (
        meta.drawn == meta.tokens == made
        and made < meta.position
        and bool((position == meta.position - 1).all())
        and sent <= made
        and start <= keep_from(windows, sent, made)
        and first <= keep_from(windows, sent, made + 1)
        and meta.samples + waiting == sent * TOKEN_SAMPLES
    )
    if not sound:
        raise SnapshotError(
            "the snapshot's parts are not of one moment: it is damaged, or was written by another thread than "
            "the one that ran the session"
        )

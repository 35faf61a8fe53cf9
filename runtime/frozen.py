"""A session as plain data: what a snapshot file holds, and what a fork copies.

Numbers and settings go in ``meta`` (JSON), arrays in ``tensors``. Nothing here touches a file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechssm.bundle import limits
from speechssm.errors import SettingsError, SnapshotError

from .acoustic import AcousticSchedule, Voice
from .lm import SavedRow
from .prompt import check_voice
from .settings import SamplerSettings
from .windows import WindowSettings

if TYPE_CHECKING:
    from .model import Model
    from .session import Session

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


class _Meta(_Strict):
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


def freeze(session: Session) -> Frozen:
    """Copy a session out of its model."""
    row = session.lm.save(0)
    settings = session.settings
    tensors: Tensors = {f"lm.{name}": array for name, array in row.state.items()}
    tensors |= {f"tokens.{name}": array for name, array in session.tokens.snapshot().items()}
    tensors |= {f"stitch.{name}": array for name, array in session.stitcher.snapshot().items()}
    tensors |= {f"codec.{name}": array for name, array in session.codec.snapshot().items()}
    tensors |= {"voice.tokens": session.voice.tokens, "voice.codes": session.voice.codes}
    tensors |= {"pending": session.pending.copy(), "held": session.held.copy()}
    meta = {
        "seed": settings.seed,
        "sampler": asdict(settings.sampler),
        "windows": asdict(settings.windows),
        "acoustic": asdict(settings.acoustic),
        "token": row.token,
        "drawn": row.drawn,
        "position": session.position,
        "asked": session.asked,
        "samples": session.stats.samples,
        "tokens": session.stats.tokens,
        "window_calls": session.stats.windows,
    }
    return Frozen(meta, tensors)


def thaw(model: Model, frozen: Frozen) -> Session:
    """A session that goes on from ``frozen``. Raises SnapshotError when it does not fit ``model``."""
    from .session import Session, SessionSettings

    meta = parse_meta(frozen.meta)
    try:
        sampler = SamplerSettings(**meta.sampler.model_dump())
        settings = SessionSettings(
            seed=meta.seed,
            sampler=sampler,
            windows=WindowSettings(**meta.windows.model_dump()),
            acoustic=AcousticSchedule(**meta.acoustic.model_dump()),
        )
        model.check_settings(settings)
    except SettingsError as error:
        raise SnapshotError(f"the snapshot's settings cannot be used: {error}") from error
    groups = _grouped(frozen.tensors)
    voice = Voice(groups["voice"]["tokens"], groups["voice"]["codes"])
    check_voice(voice, model.language_model.vocab, model.levels, model.codes)
    session = Session(model, settings, voice)
    _check_finite(frozen.tensors)
    session.lm.load(0, SavedRow(groups["lm"], meta.token, meta.drawn, meta.seed, sampler))
    session.lm.active[0] = True
    session.tokens.restore(groups["tokens"], model.language_model.vocab)
    session.stitcher.restore(groups["stitch"])
    session.codec.restore(groups["codec"])
    session.pending, session.held = _audio_tail(model, groups[""])
    session.position, session.asked = meta.position, meta.asked
    session.stats.samples, session.stats.tokens = meta.samples, meta.tokens
    session.stats.windows = meta.window_calls
    return session


def parse_meta(meta: dict[str, Any]) -> _Meta:
    """Check the JSON half. Raises SnapshotError naming the first thing that is wrong."""
    try:
        return _Meta.model_validate(_tuples(meta))
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


_GROUPS = ("", "lm", "tokens", "stitch", "codec", "voice")
_NEEDED = {"": {"pending", "held"}, "voice": {"tokens", "codes"}}


def _grouped(tensors: Tensors) -> dict[str, Tensors]:
    groups: dict[str, Tensors] = {group: {} for group in _GROUPS}
    for name, array in tensors.items():
        group, _, rest = name.rpartition(".")
        if group not in groups:
            raise SnapshotError(f"the snapshot holds a tensor {name}, which no session of this version has")
        groups[group][rest] = array
    for group, names in _NEEDED.items():
        if groups[group].keys() != names:
            raise SnapshotError("the snapshot is damaged: its voice or its pending audio is incomplete")
    return groups


def _check_finite(tensors: Tensors) -> None:
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SnapshotError(
                f"tensor {name} of the snapshot is not finite: a session cannot go on from it"
            )


def _audio_tail(model: Model, group: Tensors) -> tuple[np.ndarray, np.ndarray]:
    pending, held = group["pending"], group["held"]
    if pending.dtype != np.int64 or pending.ndim != 2 or len(pending) != model.levels:
        raise SnapshotError(
            "the snapshot's pending codes have another shape than this model's: it is of another bundle"
        )
    if pending.size and not (pending.min() >= 0 and pending.max() < model.codes):
        raise SnapshotError(f"the snapshot's pending codes lie outside this model's {model.codes}")
    if held.dtype != np.float32 or held.ndim != 1:
        raise SnapshotError("the snapshot's pending audio is not float32 samples")
    return pending.copy(), held.copy()

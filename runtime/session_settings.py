"""What a caller chooses once for a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from .acoustic import AcousticSchedule
from .random import check_seed
from .settings import SamplerSettings
from .windows import WindowSettings


@dataclass(frozen=True)
class SessionSettings:
    """Everything that, with the prompt and the bundle, decides what a session says.

    ``seed`` drives the language model and the acoustic stage. ``windows.ramp`` trades quality of the
    first 30 s for early sound.
    """

    seed: int = 0
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)
    acoustic: AcousticSchedule = field(default_factory=AcousticSchedule)

    def __post_init__(self) -> None:
        """Raise SettingsError for a seed that is not an unsigned 64-bit number."""
        check_seed(self.seed)

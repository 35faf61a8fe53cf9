"""Settings a caller may choose, checked once, where they enter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from speechssm.errors import SettingsError

TEMPERATURE_MAX = 100.0
"""Above it every distribution is uniform to float32."""


@dataclass(frozen=True)
class SamplerSettings:
    """How the next token is drawn.

    ``temperature`` 0 takes the likeliest token. ``top_k`` 0 keeps all; with ``top_p`` 1 the whole
    vocabulary is sampled, which is the paper's setting (section 4: temperature 1).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Raise SettingsError for a value outside its range."""
        number("temperature", self.temperature, 0.0, TEMPERATURE_MAX)
        whole("top_k", self.top_k, 0, 1 << 31)
        number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise SettingsError(
                "top_p is 0, which keeps no token: give a value in (0, 1], or temperature 0 for the likeliest token"
            )

    def check_against(self, k_max: int) -> None:
        """Raise SettingsError when the bundle cannot sort that many candidates."""
        if self.top_k > k_max:
            raise SettingsError(
                f"top_k is {self.top_k}, this bundle sorts at most {k_max}: give 0 for all, or at most {k_max}"
            )


def number(name: str, value: float, low: float, high: float) -> float:
    """``value`` as a finite float in [low, high], or SettingsError."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise SettingsError(f"{name} is {value!r}: give a number from {low:g} to {high:g}")
    return float(value)


def whole(name: str, value: int, low: int, high: int) -> int:
    """``value`` as an int in [low, high], or SettingsError."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}: give a whole number from {low} to {high}")
    return value

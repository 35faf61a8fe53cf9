"""Who is compared: a preset's Griffin and its Transformers of equal width, depth and MLP."""

from __future__ import annotations

from speechssm.bundle.shapes import LMShape
from speechssm.errors import SettingsError
from speechssm.export.models.transformer import transformer_shape
from speechssm.export.presets import PRESETS


def models_of(preset: str) -> dict[str, LMShape]:
    """Griffin, and the Transformer with one key/value head and with all of them. Raises SettingsError."""
    if preset not in PRESETS:
        raise SettingsError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    griffin = PRESETS[preset].lm
    return {
        "griffin": griffin,
        "transformer-mqa": transformer_shape(griffin, "mqa"),
        "transformer-mha": transformer_shape(griffin, "mha"),
    }

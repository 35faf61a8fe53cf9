"""Who is compared: a Griffin and its Transformers of equal width, depth and MLP."""

from __future__ import annotations

from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.errors import SettingsError
from speechssm.export.models.transformer import transformer_shape
from speechssm.export.presets import PRESETS

CPU_SHAPE = LMShape(
    vocab=4096, width=512, lru_width=512, heads=8, kv_heads=1, head_dim=64, window=512, mlp_width=1536,
    blocks=griffin_blocks(12),
)  # fmt: skip
"""40 M parameters and a window of 512: large enough to be bound by memory and products, small enough for two cores."""
SHAPES: dict[str, LMShape] = {"40m": CPU_SHAPE} | {name: preset.lm for name, preset in PRESETS.items()}


def models_of(name: str) -> dict[str, LMShape]:
    """Griffin, and the Transformer with one key/value head and with all of them. Raises SettingsError."""
    if name not in SHAPES:
        raise SettingsError(f"there is no preset {name!r}: choose one of {', '.join(SHAPES)}")
    griffin = SHAPES[name]
    return {
        "griffin": griffin,
        "transformer-mqa": transformer_shape(griffin, "mqa"),
        "transformer-mha": transformer_shape(griffin, "mha"),
    }

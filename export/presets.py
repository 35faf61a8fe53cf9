"""The shapes this project ships, as data."""

from __future__ import annotations

from dataclasses import dataclass

from speechssm.bundle.shapes import AcousticShape, CodecShape, LMShape, TokenizerShape, griffin_blocks
from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS
from speechssm.bundle.shapes.codec import CODEC_PRESETS


@dataclass(frozen=True)
class Preset:
    """Shapes of the four parts; a preset without the audio parts exports as an LM-only bundle."""

    lm: LMShape
    tokenizer: TokenizerShape | None = None
    acoustic: AcousticShape | None = None
    codec: CodecShape | None = None
    about: str = ""


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        about="seconds to test: e != d, several KV heads, a ring that wraps at once",
        lm=LMShape(
            vocab=64, width=32, lru_width=40, heads=4, kv_heads=2, head_dim=8, window=16, mlp_width=72,
            blocks=griffin_blocks(5),
        ),
        tokenizer=TokenizerShape(
            vocab=64, mels=20, front_width=12, width=24, layers=1, heads=2, ff_width=32, kernel=5
        ),
        acoustic=ACOUSTIC_PRESETS["tiny"],
        codec=CODEC_PRESETS["tiny"],
    ),
    "demo": Preset(
        about="the demo voice",
        lm=LMShape(
            vocab=500, width=256, lru_width=256, heads=4, kv_heads=1, head_dim=64, window=256, mlp_width=640,
            blocks=griffin_blocks(8),
        ),
        tokenizer=TokenizerShape(
            vocab=500, front_width=128, width=160, layers=5, heads=4, ff_width=256, kernel=15
        ),
        acoustic=ACOUSTIC_PRESETS["demo"],
        codec=CODEC_PRESETS["demo"],
    ),
    "2b": Preset(
        about="RecurrentGemma 2B with 32 768 audio tokens (paper section 3.2)",
        lm=LMShape(
            vocab=32_768, width=2560, lru_width=2560, heads=10, kv_heads=1, head_dim=256, window=2048,
            mlp_width=7680, blocks=griffin_blocks(26), rope="none",
        ),
    ),
    "9b": Preset(
        about="RecurrentGemma 9B with 32 768 audio tokens (paper section 3.2)",
        lm=LMShape(
            vocab=32_768, width=4096, lru_width=4096, heads=16, kv_heads=1, head_dim=256, window=2048,
            mlp_width=12_288, blocks=griffin_blocks(38), rope="none",
        ),
    ),
}  # fmt: skip

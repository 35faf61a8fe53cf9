"""Shape of the acoustic stage (SoundStorm: semantic tokens and a speaker prompt to codec codes)."""

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from speechssm.axes import TOKEN_FRAMES

from .base import Shape


class AcousticShape(Shape):
    """A bidirectional conformer over codec frames with one head per level (arXiv 2305.09636).

    ``code_width`` is the width of a code's embedding, shared by the input and by the head of its level;
    ``ff_width`` that of each of the two half-step feed-forward modules of a layer; ``kernel`` the taps of
    its depthwise convolution. A window frame attends to the frames at most ``radius`` away and to the whole
    prompt; with None it attends to the whole window, as the paper's model does. ``prompt_tokens`` is the
    length of the speaker prompt in front of every window, ``max_tokens`` the longest window (both in t).
    """

    vocab: PositiveInt
    levels: PositiveInt
    codes: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ff_width: PositiveInt
    kernel: PositiveInt = 5
    code_width: PositiveInt = 64
    radius: int | None = Field(default=100, ge=2)
    prompt_tokens: PositiveInt = 75
    max_tokens: PositiveInt = 750
    rope_base: PositiveFloat = 10_000.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not an even multiple of heads {self.heads}: rotary halves a head"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even: a non-causal convolution needs a middle tap")
        return self

    @property
    def head_dim(self) -> int:
        """k, the width of one attention head."""
        return self.width // self.heads

    @property
    def prompt_frames(self) -> int:
        """Codec frames of the speaker prompt."""
        return self.prompt_tokens * TOKEN_FRAMES

    @property
    def max_frames(self) -> int:
        """Codec frames of the longest window."""
        return self.max_tokens * TOKEN_FRAMES


ACOUSTIC_PRESETS: dict[str, AcousticShape] = {
    "tiny": AcousticShape(
        vocab=64, levels=4, codes=32, width=32, layers=2, heads=4, ff_width=64, code_width=16, radius=20
    ),
    "demo": AcousticShape(
        vocab=500, levels=8, codes=1024, width=192, layers=6, heads=4, ff_width=384, code_width=64
    ),
    "paper": AcousticShape(
        vocab=32_768, levels=12, codes=1024, width=1024, layers=12, heads=16, ff_width=4096, code_width=1024,
        radius=None,
    ),
}  # fmt: skip
"""``tiny`` for tests, ``demo`` for the demo voice, ``paper`` with SoundStorm's published widths."""

"""Shape of the semantic tokenizer (16 kHz audio to 25 Hz tokens, non-causal)."""

from typing import Self

from pydantic import PositiveInt, model_validator

from .base import Shape


class TokenizerShape(Shape):
    """A conformer over log-mel frames with a linear classifier on top.

    ``front_width`` is the width of the 50 Hz half of the subsampling front; ``ff_width`` that of each of
    the two half-step feed-forward modules of a layer; ``kernel`` the taps of its depthwise convolution.
    """

    vocab: PositiveInt
    mels: PositiveInt = 80
    front_width: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ff_width: PositiveInt
    kernel: PositiveInt

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even: a non-causal convolution needs a middle tap")
        return self

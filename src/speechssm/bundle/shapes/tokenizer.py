"""Shape of the semantic tokenizer (16 kHz audio to 25 Hz tokens, non-causal)."""

from pydantic import PositiveInt

from .base import Shape


class TokenizerShape(Shape):
    """A conformer over log-mel frames with a linear classifier on top."""

    vocab: PositiveInt
    mels: PositiveInt = 80
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ff_width: PositiveInt
    kernel: PositiveInt

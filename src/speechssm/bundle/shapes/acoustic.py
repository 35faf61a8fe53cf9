"""Shape of the acoustic stage (SoundStorm: semantic tokens and a speaker prompt to codec codes)."""

from pydantic import PositiveInt

from .base import Shape


class AcousticShape(Shape):
    """A bidirectional conformer over codec frames with one head per level (arXiv 2305.09636)."""

    vocab: PositiveInt
    levels: PositiveInt
    codes: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ff_width: PositiveInt
    kernel: PositiveInt = 5

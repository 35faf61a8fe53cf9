"""Shapes of parts that came as finished graphs: only what the runtime has to know of them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, NonNegativeInt, PositiveInt, Tag

from .acoustic import AcousticShape
from .base import Shape
from .codec import CodecShape
from .tokenizer import TokenizerShape


class ReadyTokenizerShape(Shape):
    """A semantic tokenizer given as an ONNX file.

    ``features`` is what the file itself reads: ``audio`` (b,n), or ``log_mel`` (1, mels, 4t) frames of
    10 ms, which the bundle's graph computes in front of it.
    """

    source: Literal["onnx"] = "onnx"
    vocab: PositiveInt
    features: Literal["audio", "log_mel"] = "audio"


class ReadyAcousticShape(Shape):
    """An acoustic stage given as an ONNX file: q ``levels`` of ``codes`` each, after ``prompt_tokens``."""

    source: Literal["onnx"] = "onnx"
    vocab: PositiveInt
    levels: PositiveInt
    codes: PositiveInt
    prompt_tokens: PositiveInt = 75
    max_tokens: PositiveInt = 750


class ReadyCodecShape(Shape):
    """A codec converted from someone else's network: q ``levels`` of ``codes`` each.

    ``delay_frames`` is how many frames (f) the decoder's audio lies behind its codes: the look-ahead of
    a network that is not causal.
    """

    source: Literal["lyra", "dac"]
    levels: PositiveInt
    codes: PositiveInt
    delay_frames: NonNegativeInt = 0


def _kind(value: Any) -> str:
    ready = "source" in value if isinstance(value, dict) else hasattr(value, "source")
    return "ready" if ready else "own"


TokenizerForm = Annotated[
    Annotated[TokenizerShape, Tag("own")] | Annotated[ReadyTokenizerShape, Tag("ready")], Discriminator(_kind)
]
"""Shape of a manifest's tokenizer; ``source`` tells a ready one."""
AcousticForm = Annotated[
    Annotated[AcousticShape, Tag("own")] | Annotated[ReadyAcousticShape, Tag("ready")], Discriminator(_kind)
]
"""Shape of a manifest's acoustic stage."""
CodecForm = Annotated[
    Annotated[CodecShape, Tag("own")] | Annotated[ReadyCodecShape, Tag("ready")], Discriminator(_kind)
]
"""Shape of a manifest's codec."""

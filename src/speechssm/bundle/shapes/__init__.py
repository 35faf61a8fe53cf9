"""Hyper-parameters of the four parts, as strict data."""

from .acoustic import AcousticShape
from .base import Shape
from .codec import CodecShape
from .lm import Block, LMShape, griffin_blocks
from .ready import ReadyAcousticShape, ReadyCodecShape, ReadyTokenizerShape
from .tokenizer import TokenizerShape

__all__ = [
    "AcousticShape",
    "Block",
    "CodecShape",
    "LMShape",
    "ReadyAcousticShape",
    "ReadyCodecShape",
    "ReadyTokenizerShape",
    "Shape",
    "TokenizerShape",
    "griffin_blocks",
]

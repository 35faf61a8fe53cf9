"""Hyper-parameters of the four parts, as strict data."""

from .acoustic import AcousticShape
from .base import Shape
from .codec import CodecShape
from .lm import Block, LMShape, griffin_blocks
from .tokenizer import TokenizerShape

__all__ = ["AcousticShape", "Block", "CodecShape", "LMShape", "Shape", "TokenizerShape", "griffin_blocks"]

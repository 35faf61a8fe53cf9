"""The state schema: which tensors a row carries from step to step."""

import math
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from .shapes.base import Shape


class StateTensor(Shape):
    """One state tensor of one row.

    A graph reads it as ``in_<name>`` and writes it as ``out_<name>``, both with the row axis b in
    front of ``shape``. Names are C identifiers, so inputs and outputs sort alike (Triton #8586).
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    kind: Literal["lru", "conv", "key", "value", "scale", "position", "tail"]
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "int64", "int8"] = "float32"
    grows: bool = False
    """True for the cache of a Transformer that keeps every token: ``shape`` is that of one block of slots,
    and the host gives the graph as many blocks as hold ``position + 1`` tokens (axis s)."""
    in_place: bool = False
    """True where ``lm_step`` is done with the input before it writes the output, so that an engine that can
    may be given one buffer for both: a ring is then changed where it lies and never copied."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.in_place and self.kind not in ("key", "value"):
            raise ValueError(f"state tensor {self.name} is no ring, so it cannot be written in place")
        return self

    @property
    def axes(self) -> tuple[str | int, ...]:
        """Axes of the graph's input and output."""
        return ("b", "s", *self.shape[1:]) if self.grows else ("b", *self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of one row; of one block of slots where the tensor grows."""
        return math.prod(self.shape) * {"float32": 4, "float16": 2, "int64": 8, "int8": 1}[self.dtype]


def state_bytes(schema: Iterable[StateTensor]) -> int:
    """Bytes of one row of ``schema``: what a session costs."""
    return sum(tensor.bytes for tensor in schema)

"""A part as graphs and weights rather than as a reference model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx

from speechssm.bundle.state import StateTensor

from ..graphs.builder import WeightUse


class Writable(Protocol):
    """What a bundle needs of a graph: its model, whose external weights have no place yet, and their list."""

    weights: dict[str, WeightUse]
    """By initializer name."""

    def model(self) -> onnx.ModelProto:
        """The finished model."""


@dataclass(frozen=True)
class ReadyPart:
    """Graphs by manifest name with their state schemas, and the arrays they read."""

    graphs: Mapping[str, tuple[Writable, tuple[StateTensor, ...]]]
    weights: Mapping[str, np.ndarray]
    about: str = ""
    licences: tuple[str, ...] = field(default=())

"""A layout says where each parameter of this project's Griffin lies in somebody else's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from speechssm.bundle.shapes import LMShape
from speechssm.errors import ExportError

from ..lazy import LazyArrays
from ..models.griffin import Griffin
from .files import TensorFiles

Tensors = Mapping[str, np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Take:
    """Read tensor ``name`` of shape ``shape`` and turn it into one parameter."""

    name: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = _same


Layout = Mapping[str, Take]
"""From this project's parameter names to the checkpoint's tensors."""


def parameter_shapes(shape: LMShape) -> dict[str, tuple[int, ...]]:
    """Every parameter of Griffin with its shape, without making one."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Griffin(shape).state_dict().items()}


def take_all(tensors: Tensors, layout: Layout, known: frozenset[str] = frozenset()) -> LazyArrays:
    """The parameters of ``layout`` from ``tensors``, read and converted when they are asked for.

    Raises ExportError naming the first tensor that is missing, has another shape than expected, or is
    left over and not among ``known``.
    """
    for take in layout.values():
        if take.name not in tensors:
            raise ExportError(
                f"the checkpoint has no tensor {take.name} (expected shape {list(take.shape)}): "
                "it is incomplete or of another layout"
            )
        found = shape_of(tensors, take.name)
        if found != take.shape:
            raise ExportError(
                f"tensor {take.name} has shape {list(found)}, expected {list(take.shape)}: "
                "the configuration and the weights do not belong together"
            )
    left = set(tensors) - {take.name for take in layout.values()} - known
    if left:
        raise ExportError(
            f"the checkpoint has a tensor {min(left)} that this layout does not know: it is of another "
            "model, or the configuration describes a smaller one"
        )
    return LazyArrays({ours: _reader(tensors, take) for ours, take in layout.items()})


def shape_of(tensors: Tensors, name: str) -> tuple[int, ...]:
    """Shape of one tensor; from the header where the tensors are on disk."""
    return tensors.shape(name) if isinstance(tensors, TensorFiles) else tuple(tensors[name].shape)


def _reader(tensors: Tensors, take: Take) -> Callable[[], np.ndarray]:
    return lambda: take.convert(tensors[take.name])

"""What every engine checks of the arrays it is given, so that all of them refuse the same things in the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from speechssm.bundle.manifest import Value
from speechssm.errors import EngineError

from .protocol import Array, as_dtype


def check_names(graph: str, values: Sequence[Value], given: Mapping[str, Array]) -> None:
    """Raise EngineError unless ``given`` has exactly the names of ``values``."""
    names = {v.name for v in values}
    if names != given.keys():
        odd = sorted(names ^ given.keys())
        what = "is missing" if odd[0] in names else "is not of this graph"
        raise EngineError(f"graph {graph}: {odd[0]} {what}")


def check_array(graph: str, value: Value, array: Array, sizes: dict[str, int]) -> None:
    """Raise EngineError unless type, layout and axes fit; ``sizes`` remembers what a letter stands for."""
    if array.dtype != as_dtype(value.dtype) or not array.flags.c_contiguous or array.ndim != len(value.axes):
        raise EngineError(
            f"graph {graph}: {value.name} must be C-contiguous {value.dtype} of rank {len(value.axes)}, "
            f"got {array.dtype} of rank {array.ndim}"
        )
    for axis, size in zip(value.axes, array.shape, strict=True):
        wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
        if size != wanted:
            raise EngineError(f"graph {graph}: {value.name} has {size} along {axis}, expected {wanted}")

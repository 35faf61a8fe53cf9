"""Weights as a bundle stores them: what narrowing does to a parameter before it is widened again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .lazy import LazyArrays
from .package import narrowed

_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def is_matrix(name: str) -> bool:
    """True for the parameters that are stored narrow; norms, biases, conv and decay stay float32."""
    return name in ("embed", "head") or name.endswith(".weight")


def stored_parameters(parameters: Mapping[str, np.ndarray], storage: str) -> Mapping[str, np.ndarray]:
    """``parameters`` after a trip through ``storage`` and back to float32.

    The reference of a parity report runs on these, so that the report measures the graphs; what the
    storage itself costs in quality is measured by ``--quantize``.
    """
    if storage == "float32":
        return parameters
    kind = _TYPES[storage]
    return LazyArrays({name: _through(parameters, name, kind) for name in parameters})


def _through(parameters: Mapping[str, np.ndarray], name: str, kind: str) -> Callable[[], np.ndarray]:
    if not is_matrix(name):
        return lambda: parameters[name]
    return lambda: widened(narrowed(name, parameters[name], kind))


def widened(array: np.ndarray) -> np.ndarray:
    """float32 from float32, float16, or bfloat16 held as uint16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)

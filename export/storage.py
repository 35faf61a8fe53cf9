"""How a bundle stores weights: the graph builders' codes, the arrays, and what is lost on the way.

``float32``, ``float16`` and ``bfloat16`` are one type for every matrix, widened when a graph is loaded.
``int8``, ``int4`` and ``dynamic_int8`` are described in :mod:`.graphs.quantized`, ``qdq_int8`` and
``qdq_fp8`` in :mod:`.graphs.explicit`; they apply to the language model, and the other parts are then
stored as float16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from onnx import TensorProto

from speechssm.bundle.shapes import LMShape

from .graphs.explicit import LARGEST, QDQ_FP8, QDQ_INT8
from .graphs.linear_function import rows_of
from .graphs.quantized import BLOCKS_INT4, BLOCKS_INT8, DYNAMIC_INT8, HEAD_BITS
from .lazy import LazyArrays
from .package import narrowed
from .quantize import quantize, quantize_columns, quantize_fp8, through, through_fp8

Storage = Literal["float32", "float16", "bfloat16", "int8", "int4", "dynamic_int8", "qdq_int8", "qdq_fp8"]
Parameters = Mapping[str, np.ndarray]

STORED: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": BLOCKS_INT8,
    "int4": BLOCKS_INT4,
    "dynamic_int8": DYNAMIC_INT8,
    "qdq_int8": QDQ_INT8,
    "qdq_fp8": QDQ_FP8,
}
"""The ``stored`` argument of the graph builders."""
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BITS = {"int8": 8, "int4": 4}


def is_integer(storage: str) -> bool:
    """True for the storages that only the language model's graphs know."""
    return storage not in _FLOATS


def is_matrix(name: str) -> bool:
    """True for the parameters that float storages narrow; norms, biases, conv and decay stay float32."""
    return name in ("embed", "head") or name.endswith(".weight")


def is_gate(name: str) -> bool:
    """True for the block-diagonal gates, which stay float32 beside integer matrices."""
    return "_gate." in name


def is_calibrated(storage: str) -> bool:
    """True for the storages whose activations take scales that are measured beforehand."""
    return storage.startswith("qdq_")


def stored_weights(
    shape: LMShape,
    weights: Parameters,
    storage: Storage,
    ranges: Mapping[str, float] | None = None,
    *,
    linear_op: bool = False,
) -> Parameters:
    """The arrays of the LM graphs in ``storage``, from the float32 ones of ``griffin_weights``.

    ``ranges`` are those of :func:`.calibrate.activation_ranges`, for the storages that are calibrated.
    ``linear_op``: for graphs whose linear layers are operators.
    """
    if not is_integer(storage):
        return rows_of(weights) if linear_op else weights
    makers: dict[str, Callable[[], np.ndarray]] = {name: _read(weights, name) for name in weights}
    head = _read(weights, "embed" if shape.tied_head else "head")
    makers.pop("head", None)
    for name in [n for n in makers if n.endswith(".weight")]:
        makers.pop(name)
        _pair(makers, name, _transposed(weights, name), _BITS.get(storage), fp8=storage == "qdq_fp8")
    _pair(makers, "head", head, HEAD_BITS if storage in _BITS else None, fp8=storage == "qdq_fp8")
    for name, largest in (ranges or {}).items():
        makers[f"{name}.x"] = _constant(max(largest, 1e-30) / LARGEST[STORED[storage]])
    arrays = LazyArrays(makers)
    return rows_of(arrays) if linear_op else arrays


def _pair(
    makers: dict[str, Callable[[], np.ndarray]],
    name: str,
    matrix: Callable[[], np.ndarray],
    bits: int | None,
    *,
    fp8: bool = False,
) -> None:
    """Numbers and scales of one (out, in) matrix; quantized anew for each, so that neither is kept."""

    def both() -> tuple[np.ndarray, np.ndarray]:
        if bits is not None:
            return quantize(matrix(), bits)
        if fp8:
            return quantize_fp8(np.ascontiguousarray(matrix().T))
        return quantize_columns(np.ascontiguousarray(matrix().T))

    makers[f"{name}.q"] = lambda: both()[0]
    makers[f"{name}.s"] = lambda: both()[1]


def stored_parameters(parameters: Parameters, storage: Storage) -> Parameters:
    """Griffin's ``parameters`` after a trip through ``storage`` and back to float32.

    The reference of a parity report runs on these, so that the report measures the graphs; what the
    storage itself costs in quality is measured by ``--quantize``. Integer storages give a ``head`` of its
    own even where it is tied: the embedding's rows and the head are then rounded differently.
    """
    if storage == "float32":
        return parameters
    makers: dict[str, Callable[[], np.ndarray]] = {}
    for name in parameters:
        makers[name] = _through(parameters, name, storage)
    if is_integer(storage):
        source = "head" if "head" in parameters else "embed"
        bits = HEAD_BITS if storage in _BITS else None
        makers["head"] = lambda: _there_and_back(parameters[source], bits, fp8=storage == "qdq_fp8")
    return LazyArrays(makers)


def _through(parameters: Parameters, name: str, storage: Storage) -> Callable[[], np.ndarray]:
    if not is_matrix(name) or (is_integer(storage) and is_gate(name)):
        return _read(parameters, name)
    if not is_integer(storage) or name == "embed":
        kind = _FLOATS.get(storage, "F16")
        return lambda: widened(narrowed(name, parameters[name], kind))
    return lambda: _there_and_back(parameters[name], _BITS.get(storage), fp8=storage == "qdq_fp8")


def _there_and_back(matrix: np.ndarray, bits: int | None, *, fp8: bool = False) -> np.ndarray:
    """An (out, in) matrix through blocks of ``bits``, float8, or int8 with a scale for each output."""
    if bits is not None:
        return through(matrix, bits)
    if fp8:
        return through_fp8(matrix)
    numbers, scale = quantize_columns(np.ascontiguousarray(matrix.T))
    return np.ascontiguousarray((numbers.astype(np.float32) * scale).T)


def widened(array: np.ndarray) -> np.ndarray:
    """float32 from float32, float16, or bfloat16 held as uint16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _read(parameters: Parameters, name: str) -> Callable[[], np.ndarray]:
    return lambda: parameters[name]


def _constant(value: float) -> Callable[[], np.ndarray]:
    return lambda: np.array(value, np.float32)


def _transposed(weights: Parameters, name: str) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(weights[name].T)


STORAGES: tuple[str, ...] = get_args(Storage)

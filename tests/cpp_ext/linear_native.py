"""Calls of the native linear layer: matrices as a bundle stores them, every unused number poisoned."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from speechssm.cpp_ext.native import BF16, BLOCKS4, BLOCKS8, F16, F32, Linear
from speechssm.export.quantize import quantize
from tests.cpp_ext.lru_native import HostLibrary, pointer

STORAGES = {"float32": F32, "float16": F16, "bfloat16": BF16, "int8": BLOCKS8, "int4": BLOCKS4}
ACTIVATIONS = {"none": 0, "gelu_tanh": 1, "gelu": 2, "silu": 3}
_BITS = {"int8": 8, "int4": 4}


@dataclass
class Layer:
    """One layer's numbers in float32; what is None is left out. x (r,i), weight and times (o,i)."""

    x: np.ndarray
    weight: np.ndarray
    norm: np.ndarray | None = None
    bias: np.ndarray | None = None
    times: np.ndarray | None = None
    times_bias: np.ndarray | None = None
    residual: np.ndarray | None = None

    def rows(self, some: slice | list[int]) -> Layer:
        """The same layer for some rows."""
        residual = None if self.residual is None else self.residual[some]
        return Layer(self.x[some], self.weight, self.norm, self.bias, self.times, self.times_bias, residual)


def random_layer(
    rng: np.random.Generator, rows: int, fan_in: int, fan_out: int, *, gated: bool = True
) -> Layer:
    """A layer with all that a call may have."""

    def numbers(*sizes: int) -> np.ndarray:
        return rng.standard_normal(sizes).astype(np.float32)

    wide = np.float32(fan_in**-0.5)
    return Layer(
        3 * numbers(rows, fan_in),
        wide * numbers(fan_out, fan_in),
        1 + numbers(fan_in) / 4,
        numbers(fan_out),
        wide * numbers(fan_out, fan_in) if gated else None,
        numbers(fan_out) if gated else None,
        numbers(rows, fan_out),
    )


def stored(matrix: np.ndarray | None, storage: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A matrix and its scales as ``storage`` keeps them."""
    if matrix is None:
        return None, None
    if storage in _BITS:
        numbers, scale = quantize(matrix, _BITS[storage])
        return np.ascontiguousarray(numbers), np.ascontiguousarray(scale)
    kinds = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    return np.ascontiguousarray(matrix.astype(kinds.get(storage, np.float32))), None


def call_of(
    host: HostLibrary, layer: Layer, storage: str, activation: str = "none", *, stride: int = 0
) -> tuple[Linear, np.ndarray, object]:
    """A filled struct, its y (r,o) full of NaN, and what keeps the memory alive; ``stride`` widens rows of x."""
    rows, fan_in = layer.x.shape
    fan_out = len(layer.weight)
    host.lib.speechssm_linear_workspace_bytes.restype = ctypes.c_int64
    size = int(host.lib.speechssm_linear_workspace_bytes(rows, fan_in))
    x = np.full((rows, fan_in + stride), np.nan, np.float32)
    x[:, :fan_in] = layer.x
    y = np.full((rows, fan_out), np.nan, np.float32)
    keep = [
        x, layer.norm, *stored(layer.weight, storage), layer.bias, *stored(layer.times, storage),
        layer.times_bias, layer.residual, y, np.full(size, 0xA5, np.uint8),
    ]  # fmt: skip
    keep = [None if a is None else np.ascontiguousarray(a) for a in keep]
    call = Linear(
        ctypes.sizeof(Linear), rows, fan_in, fan_out, STORAGES[storage], ACTIVATIONS[activation], 1e-6,
        fan_in + stride if stride else 0, 0, *(None if a is None else pointer(a) for a in keep), size,
    )  # fmt: skip
    return call, keep[-2], keep


def run_linear(
    host: HostLibrary,
    layer: Layer,
    storage: str,
    activation: str = "none",
    *,
    version: int = 1,
    stride: int = 0,
) -> np.ndarray:
    """y (r,o)."""
    call, y, _keep = call_of(host, layer, storage, activation, stride=stride)
    status = host.lib.speechssm_linear_host(ctypes.byref(call), version)
    assert status == 0, host.text(status)
    return y

"""Weight-only integers: matrices in blocks of 128 along the input axis, one float32 scale a block.

The format is that of ONNX Runtime's ``MatMulNBits``: for each output, blocks of ``BLOCK`` inputs as
unsigned numbers around 2^(bits-1), two to a byte at 4 bits. A block's largest magnitude keeps its
sign and lands on the end of the range that is one step longer.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

BLOCK = 128
"""Inputs that share a scale. Blocks of 32 read a quarter fewer bytes a second in ONNX Runtime."""


def blocks_of(inputs: int) -> int:
    """Blocks that ``inputs`` numbers are cut into; the last one is padded with zeros."""
    return -(-inputs // BLOCK)


def quantize(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(out, in) float32 -> packed (out, blocks, BLOCK*bits/8) uint8 and scales (out, blocks) float32."""
    outputs, inputs = matrix.shape
    count, half = blocks_of(inputs), 1 << (bits - 1)
    padded = np.zeros((outputs, count * BLOCK), np.float32)
    padded[:, :inputs] = matrix
    cut = padded.reshape(outputs, count, BLOCK)
    where = np.abs(cut).argmax(-1, keepdims=True)
    scale = np.take_along_axis(cut, where, -1) / np.float32(-half)
    divisor = np.where(scale == 0, np.float32(1), scale)
    numbers = np.clip(np.rint(cut / divisor) + half, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        numbers = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return numbers, scale[..., 0]


def dequantize(numbers: np.ndarray, scale: np.ndarray, inputs: int, bits: int) -> np.ndarray:
    """The float32 (out, in) matrix that :func:`quantize`'s result stands for."""
    if bits == 4:
        pairs = np.empty((*numbers.shape[:-1], numbers.shape[-1] * 2), np.uint8)
        pairs[..., 0::2], pairs[..., 1::2] = numbers & 15, numbers >> 4
        numbers = pairs
    cut = (numbers.astype(np.float32) - np.float32(1 << (bits - 1))) * scale[..., None]
    return np.ascontiguousarray(cut.reshape(len(cut), -1)[:, :inputs])


def through(matrix: np.ndarray, bits: int) -> np.ndarray:
    """``matrix`` (out, in) after quantizing and back."""
    numbers, scale = quantize(matrix, bits)
    return dequantize(numbers, scale, matrix.shape[1], bits)


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) float32 -> int8 of the same shape and scales (out): the format of ``DynamicQuantizeMatMul``."""
    scale = (np.abs(matrix).max(0) / np.float32(127)).astype(np.float32)
    divisor = np.where(scale == 0, np.float32(1), scale)
    return np.rint(matrix / divisor).astype(np.int8), divisor


FP8_LARGEST = 448.0
"""Largest number of float8 e4m3."""


def quantize_fp8(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float32 matrix -> float8 e4m3 as uint8 of the same shape, and one scale ()."""
    scale = np.float32(max(float(np.abs(matrix).max(initial=0)), 1e-30) / FP8_LARGEST)
    numbers = (matrix / scale).astype(ml_dtypes.float8_e4m3fn)
    return numbers.view(np.uint8), np.array(scale, np.float32)


def through_fp8(matrix: np.ndarray) -> np.ndarray:
    """``matrix`` after :func:`quantize_fp8` and back."""
    numbers, scale = quantize_fp8(matrix)
    wide: np.ndarray = numbers.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return wide

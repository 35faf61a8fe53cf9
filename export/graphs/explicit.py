"""Explicit quantization for TensorRT: QuantizeLinear and DequantizeLinear around every product.

TensorRT (11 has no other way) reads precision off the graph: a product whose two inputs come out of
DequantizeLinear runs on 8-bit tensor cores. Weights are stored as int8 with a scale for each output, or as
float8 (e4m3) with one scale; activations take one constant scale a layer, measured beforehand
(:mod:`speechssm.export.calibrate`), and zero points of 0, as TensorRT wants them. What stays float32 is what
the other integer formats leave: embedding, gates, recurrence, norms, softmax, sampler.

ONNX Runtime runs the same graphs on a CPU, for the parity report; for speed there take the other formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from .builder import FLOAT
from .griffin_nodes import PART, Nodes
from .quantized import QuantizedNodes

QDQ_INT8, QDQ_FP8 = int(TensorProto.INT16), int(TensorProto.FLOAT8E4M3FN)
"""Values of a graph builder's ``stored``."""
_NUMBERS = {QDQ_INT8: int(TensorProto.INT8), QDQ_FP8: int(TensorProto.FLOAT8E4M3FN)}
_ZEROS: dict[int, Any] = {QDQ_INT8: np.int8(0), QDQ_FP8: np.array(0, ml_dtypes.float8_e4m3fn)}
LARGEST = {QDQ_INT8: 127.0, QDQ_FP8: 448.0}
"""Number that the largest magnitude is scaled to."""


@dataclass(frozen=True)
class ExplicitNodes(QuantizedNodes):
    """int8 or float8 products with constant scales."""

    cut: dict[str, str] = field(default_factory=dict)
    """Activations that were already quantized and widened again: layers that read the same share them."""

    def product(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """See :class:`Nodes`."""
        return self._explicit(x, f"{name}.weight", fan_in, fan_out, name)

    def unembed(self, x: str, value: str) -> str:
        """See :class:`Nodes`."""
        return self._explicit(x, "head", self.shape.width, self.shape.vocab, value)

    def _explicit(self, x: str, weight: str, fan_in: int, fan_out: int, value: str) -> str:
        g, int8 = self.g, self.stored == QDQ_INT8
        numbers = g.packed(PART, f"{weight}.q", (fan_in, fan_out), _NUMBERS[self.stored])
        scale = g.packed(PART, f"{weight}.s", (fan_out,) if int8 else (), FLOAT)
        wide = g.op("DequantizeLinear", numbers, scale, axis=1 if int8 else 0)
        return g.op("MatMul", self._cut(x, weight), wide, name=value)

    def _cut(self, x: str, weight: str) -> str:
        """x as 8-bit numbers and back; the scale is that of the first layer that reads x."""
        if x not in self.cut:
            g = self.g
            scale = g.packed(PART, f"{weight}.x", (), FLOAT)
            zero = g.const(_ZEROS[self.stored])
            self.cut[x] = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
        return self.cut[x]


@dataclass(frozen=True)
class ObservingNodes(Nodes):
    """Float32 nodes that remember what every product reads: weight name to value, for calibration."""

    read: dict[str, str] = field(default_factory=dict)

    def product(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """See :class:`Nodes`."""
        self.read[f"{name}.weight"] = x
        return super().product(x, name, fan_in, fan_out)

    def unembed(self, x: str, value: str) -> str:
        """See :class:`Nodes`."""
        self.read["head"] = x
        return super().unembed(x, value)

    def report(self) -> dict[str, str]:
        """Declare the largest magnitude of every value read as an output ``largest_0``, ...; by weight name."""
        g, outputs, made = self.g, dict[str, str](), dict[str, str]()
        for weight, x in self.read.items():
            if x not in made:
                made[x] = f"largest_{len(made)}"
                g.output(made[x], g.op("ReduceMax", g.op("Abs", x), keepdims=0), FLOAT, ())
            outputs[weight] = made[x]
        return outputs

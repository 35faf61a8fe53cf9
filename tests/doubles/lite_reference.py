"""A TFLite network run operation by operation, one frame at a time, in float64: what the converted graph is held to.

Knows nothing of layers or causality: variables are read and assigned as the file says. Rounding of activations is
left out, as the conversion leaves it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from speechssm.export.ready.lite import LiteGraph, Operation


class LiteReference:
    """Carries the variables from frame to frame."""

    def __init__(self, graph: LiteGraph) -> None:
        self.graph = graph
        self.operations = list(graph.operations())
        self.variables: dict[int, np.ndarray] = {}

    def __call__(self, given: np.ndarray) -> np.ndarray:
        """One frame in, one frame out."""
        values: dict[int, np.ndarray] = {self.graph.inputs[0]: given.astype(np.float64)}

        def value(tensor: int) -> np.ndarray:
            if tensor not in values:
                found = self.graph.constant(tensor)
                assert found is not None, tensor
                values[tensor] = found.astype(np.float64)
            return values[tensor]

        for operation in self.operations:
            if operation.kind in ("CALL_ONCE", "VAR_HANDLE"):
                continue
            if operation.kind == "READ_VARIABLE":
                shape = self.graph.shape(operation.outputs[0])
                values[operation.outputs[0]] = self.variables.get(operation.inputs[0], np.zeros(shape))
            elif operation.kind == "ASSIGN_VARIABLE":
                self.variables[operation.inputs[0]] = value(operation.inputs[1])
            else:
                made = self._run(operation, [value(i) for i in operation.inputs])
                values.update(zip(operation.outputs, made, strict=True))
        return values[self.graph.outputs[0]]

    def _options(self, operation: Operation, kind: str) -> Any:
        return self.graph.options(operation, kind)

    def _run(self, operation: Operation, given: list[np.ndarray]) -> list[np.ndarray]:
        kind, x = operation.kind, given[0]
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            return [x]
        if kind == "RESHAPE":
            return [x.reshape(self.graph.shape(operation.outputs[0]))]
        if kind == "LEAKY_RELU":
            return [np.where(x < 0, x * self._options(operation, "LeakyReluOptions").Alpha(), x)]
        if kind == "ADD":
            return [x + given[1]]
        if kind == "SUB":
            return [x - given[1]]
        if kind == "CONCATENATION":
            return [np.concatenate(given, self._options(operation, "ConcatenationOptions").Axis())]
        if kind == "SPLIT":
            return np.split(given[1], len(operation.outputs), -1)
        if kind == "STRIDED_SLICE":
            frames = self.graph.shape(operation.outputs[0])[1]
            begin = int(given[1][1])
            return [x[:, begin : begin + frames or None]]
        if kind == "CONV_2D":
            return [self._conv(operation, *given)]
        if kind == "DEPTHWISE_CONV_2D":
            dilation = self._options(operation, "DepthwiseConv2DOptions").DilationHFactor()
            frames = x.shape[1] - 2 * dilation
            return [
                sum(x[:, j * dilation :][:, :frames] * given[1][:, j : j + 1] for j in range(3)) + given[2]
            ]
        assert kind == "TRANSPOSE_CONV", kind
        return [self._transposed(operation, *given)]

    def _conv(self, operation: Operation, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        stride = self._options(operation, "Conv2DOptions").StrideH()
        out, taps, _, inputs = weight.shape
        groups = x.shape[3] // inputs
        made = np.zeros((1, (x.shape[1] - taps) // stride + 1, 1, out))
        for frame in range(made.shape[1]):
            for channel in range(out):
                group = channel // (out // groups)
                seen = x[0, frame * stride :][:taps, 0, group * inputs : (group + 1) * inputs]
                made[0, frame, 0, channel] = (seen * weight[channel, :, 0]).sum() + bias[channel]
        return made

    def _transposed(
        self, operation: Operation, _: np.ndarray, weight: np.ndarray, x: np.ndarray, bias: np.ndarray
    ) -> np.ndarray:
        stride = self._options(operation, "TransposeConvOptions").StrideH()
        out, taps, _, _ = weight.shape
        made = np.zeros((1, (x.shape[1] - 1) * stride + taps, 1, out)) + bias
        for frame in range(x.shape[1]):
            for tap in range(taps):
                made[0, frame * stride + tap, 0] += weight[:, tap, 0] @ x[0, frame, 0]
        return made

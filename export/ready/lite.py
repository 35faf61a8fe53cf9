"""TensorFlow Lite files as arrays and operations, read with the ``tflite`` package.

Only what frame-by-frame causal networks are made of: convolutions whose past lies in variables, leaky
rectifiers, sums, splits. Weights stored as int8 become float32; quantizing an activation becomes nothing,
so the network computes in floats what the file computes with rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from speechssm.errors import ExportError

from .causal import Layer, Network

MAGIC = b"TFL3"
FILE_BYTES = 256 << 20
"""Largest file that is read."""
_VALID = 1
"""Padding that adds nothing; the past comes from a variable."""


def _tflite() -> ModuleType:
    try:
        import tflite
    except ImportError as error:
        raise ExportError(
            f"reading a .tflite file needs the package {error.name}: run 'pip install speechssm[lyra]'"
        ) from error
    module: ModuleType = tflite
    return module


@dataclass(frozen=True)
class Operation:
    """One operation: its kind as TFLite spells it, tensor numbers (-1 for none), and its options."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


class LiteGraph:
    """One subgraph of a file: operations in order, constants and shapes by tensor number."""

    def __init__(self, path: Path, model: Any, index: int) -> None:
        lite = _tflite()
        self.path = path
        self._model, self._graph = model, model.Subgraphs(index)
        self.name = (self._graph.Name() or b"").decode("utf-8", "replace")
        self._kinds = {v: k for k, v in vars(lite.BuiltinOperator).items() if isinstance(v, int)}
        types = lite.TensorType
        self._types = {types.FLOAT32: "<f4", types.INT8: "<i1", types.INT32: "<i4", types.INT64: "<i8"}
        self.inputs = tuple(int(i) for i in self._graph.InputsAsNumpy()) if self._graph.InputsLength() else ()
        self.outputs = (
            tuple(int(i) for i in self._graph.OutputsAsNumpy()) if self._graph.OutputsLength() else ()
        )

    def operations(self) -> Iterator[Operation]:
        """Every operation, in the file's order, which is that of execution."""
        for i in range(self._graph.OperatorsLength()):
            op = self._graph.Operators(i)
            code = self._model.OperatorCodes(op.OpcodeIndex())
            # Codes below 127 may stand in the older field alone.
            kind = self._kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "custom operation")
            inputs = tuple(int(n) for n in op.InputsAsNumpy()) if op.InputsLength() else ()
            outputs = tuple(int(n) for n in op.OutputsAsNumpy()) if op.OutputsLength() else ()
            yield Operation(kind, inputs, outputs, op.BuiltinOptions())

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Declared sizes of a tensor."""
        found = self._graph.Tensors(tensor)
        return tuple(int(n) for n in found.ShapeAsNumpy()) if found.ShapeLength() else ()

    def constant(self, tensor: int) -> np.ndarray | None:
        """A tensor's stored values, floats where it is quantized; None when it is computed.

        Raises ExportError for values that do not fit their shape, are of a type not read here, or not finite.
        """
        found = self._graph.Tensors(tensor)
        buffer = self._model.Buffers(found.Buffer())
        if not buffer.DataLength():
            return None
        name, shape = (found.Name() or b"").decode("utf-8", "replace"), self.shape(tensor)
        kind = self._types.get(found.Type())
        if kind is None:
            raise ExportError(f"tensor {name} of {self.path.name} is of a type that is not read here")
        raw = buffer.DataAsNumpy().tobytes()
        if len(raw) != int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize:
            raise ExportError(
                f"tensor {name} of {self.path.name} has {len(raw)} bytes for shape {list(shape)}: the file is damaged"
            )
        array = np.frombuffer(raw, kind).reshape(shape)
        quantization = found.Quantization()
        if quantization is not None and quantization.ScaleLength():
            array = self._dequantized(array, quantization)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(f"tensor {name} of {self.path.name} is not finite: the file is damaged")
        return array

    @staticmethod
    def _dequantized(array: np.ndarray, quantization: Any) -> np.ndarray:
        scale = quantization.ScaleAsNumpy().astype(np.float64)
        zero = quantization.ZeroPointAsNumpy() if quantization.ZeroPointLength() else np.zeros(1)
        spread = [1] * array.ndim
        if len(scale) > 1:
            spread[quantization.QuantizedDimension()] = len(scale)
        floats: np.ndarray = (
            (array - zero.reshape(spread if len(zero) > 1 else [1] * array.ndim)) * scale.reshape(spread)
        ).astype(np.float32)
        return floats

    def options(self, operation: Operation, kind: str) -> Any:
        """The options of an operation as the table ``kind`` of the schema."""
        table = getattr(_tflite(), kind)()
        if operation.options is None:
            raise ExportError(
                f"an operation {operation.kind} of {self.path.name} has no options: the file is damaged"
            )
        table.Init(operation.options.Bytes, operation.options.Pos)
        return table


def read_lite(path: Path) -> list[LiteGraph]:
    """Subgraphs of a file. Raises ExportError when it is missing, too large, cut short or no TFLite file."""
    lite = _tflite()
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ExportError(f"{path} is larger than {FILE_BYTES} bytes: no codec of this kind is")
        raw = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error
    if raw[4:8] != MAGIC:
        raise ExportError(f"{path} is not a TFLite file: expected {MAGIC.decode()} at byte 4")
    try:
        model = lite.Model.GetRootAsModel(raw, 0)
        graphs = [LiteGraph(path, model, i) for i in range(model.SubgraphsLength())]
        for graph in graphs:  # every number and buffer is looked at once, so that damage shows here
            for operation in graph.operations():
                for tensor in (*operation.inputs, *operation.outputs):
                    if tensor >= 0:
                        graph.constant(tensor)
    except ExportError:
        raise
    except Exception as error:  # flatbuffers reads wherever a damaged offset points
        raise ExportError(
            f"{path} is damaged ({type(error).__name__} while reading): fetch it again"
        ) from error
    return graphs


def causal_network(graph: LiteGraph, letter: str) -> Network:
    """The layers of a frame-by-frame network whose past lies in variables; values are named ``letter``00, ...

    Raises ExportError naming the operation that such a network does not have.
    """
    try:
        return _Reader(graph, letter).read()
    except ExportError:
        raise
    except Exception as error:  # an operation's options may be damaged, too
        raise ExportError(
            f"{graph.path} is damaged ({type(error).__name__} while reading): fetch it again"
        ) from error


@dataclass(frozen=True)
class _Value:
    """What a tensor stands for in a network whose past is nobody's business but a layer's."""

    kind: Literal["value", "past", "variable", "zeros", "overlap", "nothing"]
    """A value; [past | value]; a variable as read; [variable | zeros]; overlaps summed; or what is carried on."""
    name: str = ""
    frames: int = 0
    """Of the past."""


class _Reader:
    """One handler for each kind of operation; ``seen`` says what every tensor so far stands for."""

    def __init__(self, graph: LiteGraph, letter: str) -> None:
        self.graph, self.letter, self.file = graph, letter, graph.path.name
        self.layers: list[Layer] = []
        self.seen: dict[int, _Value] = {}

    def read(self) -> Network:
        if len(self.graph.inputs) != 1 or len(self.graph.outputs) != 1:
            raise ExportError(f"{self.file} has not one input and one output: it is another network")
        source = self.graph.inputs[0]
        self.seen[source] = _Value("value", "in")
        for operation in self.graph.operations():
            handler = getattr(self, f"_do_{operation.kind.lower()}", None)
            if handler is None:
                raise ExportError(
                    f"{self.file} holds an operation {operation.kind}, which no layer here is made of"
                )
            handler(operation)
        shape = self.graph.shape(source)
        channels = shape[-1] if len(shape) > 2 else 1
        return Network(tuple(self.layers), "in", self._value(self.graph.outputs[0]), channels)

    def _value(self, tensor: int) -> str:
        found = self.seen.get(tensor, _Value("nothing"))
        if found.kind != "value":
            raise ExportError(
                f"{self.file} uses tensor {tensor} as a causal network does not: it is another network"
            )
        return found.name

    def _layer(self, tensor: int, kind: Any, *inputs: str, **fields: Any) -> Layer:
        layer = Layer(kind, inputs, f"{self.letter}{len(self.layers):02d}", **fields)
        self.layers.append(layer)
        self.seen[tensor] = _Value("value", layer.output)
        return layer

    # what moves the past about, and what only rounds

    def _do_call_once(self, operation: Operation) -> None:
        """Variables start at zero."""

    _do_var_handle = _do_assign_variable = _do_call_once

    def _do_read_variable(self, operation: Operation) -> None:
        frames = self.graph.shape(operation.outputs[0])[1]
        self.seen[operation.outputs[0]] = _Value("variable", frames=frames)

    def _do_reshape(self, operation: Operation) -> None:
        self.seen[operation.outputs[0]] = self.seen[operation.inputs[0]]

    _do_quantize = _do_dequantize = _do_reshape

    def _do_strided_slice(self, operation: Operation) -> None:
        """Of overlaps, the head is the value; everything else is carried on."""
        found, begin = self.seen[operation.inputs[0]], self.graph.constant(operation.inputs[1])
        head = found.kind == "overlap" and begin is not None and not begin.any()
        self.seen[operation.outputs[0]] = _Value("value", found.name) if head else _Value("nothing")

    def _do_sub(self, operation: Operation) -> None:
        """The bias is taken off the tail, since the next frame adds it again."""
        self.seen[operation.outputs[0]] = _Value("nothing")

    def _do_concatenation(self, operation: Operation) -> None:
        first, out = self.seen[operation.inputs[0]], operation.outputs[0]
        if first.kind != "variable":
            axis = self.graph.options(operation, "ConcatenationOptions").Axis()
            if axis not in (-1, 3):
                raise ExportError(f"{self.file} joins values along axis {axis}: expected channels")
            self._layer(out, "join", *(self._value(i) for i in operation.inputs))
        elif self.graph.constant(operation.inputs[1]) is not None:
            self.seen[out] = _Value("zeros", frames=first.frames)
        else:
            self.seen[out] = _Value("past", self._value(operation.inputs[1]), first.frames)

    # layers

    def _do_conv_2d(self, operation: Operation) -> None:
        options = self.graph.options(operation, "Conv2DOptions")
        weight, bias = self._weights(operation, 1, 2)
        inputs = self.graph.shape(operation.inputs[0])[3]
        self._convolution(
            operation, options, "conv", weight[:, :, 0], bias, options.DilationHFactor(),
            stride=options.StrideH(), groups=inputs // weight.shape[3],
        )  # fmt: skip

    def _do_depthwise_conv_2d(self, operation: Operation) -> None:
        options = self.graph.options(operation, "DepthwiseConv2DOptions")
        weight, bias = self._weights(operation, 1, 2)
        if options.DepthMultiplier() != 1 or options.StrideH() != 1:
            raise ExportError(
                f"a DEPTHWISE_CONV_2D of {self.file} has a stride or multiplier: only 1 is read"
            )
        self._convolution(operation, options, "depthwise", weight[0, :, 0], bias, options.DilationHFactor())

    def _convolution(
        self, operation: Operation, options: Any, kind: str, weight: np.ndarray, bias: np.ndarray | None,
        dilation: int, **fields: int,
    ) -> None:  # fmt: skip
        found = self.seen[operation.inputs[0]]
        past = found.frames if found.kind == "past" else 0
        name = found.name if found.kind == "past" else self._value(operation.inputs[0])
        if options.Padding() != _VALID:
            raise ExportError(f"a {operation.kind} of {self.file} pads: it is not causal")
        if options.FusedActivationFunction() != 0:
            raise ExportError(f"a {operation.kind} of {self.file} has an activation fused in: none is read")
        layer = self._layer(
            operation.outputs[0], kind, name, weight=weight, bias=bias, dilation=dilation, **fields
        )
        if layer.context != past:
            raise ExportError(
                f"a {operation.kind} of {self.file} sees {past} past frames, expected {layer.context}: it is not causal"
            )

    def _do_transpose_conv(self, operation: Operation) -> None:
        options = self.graph.options(operation, "TransposeConvOptions")
        weight, bias = self._weights(operation, 1, 3)
        taps, stride = weight.shape[1], options.StrideH()
        if options.Padding() != _VALID or taps % stride:
            raise ExportError(
                f"a TRANSPOSE_CONV of {self.file} has {taps} taps and stride {stride}: expected a multiple"
            )
        name = self._value(operation.inputs[2])
        self._layer(operation.outputs[0], "transpose", name, weight=weight[:, :, 0], bias=bias, stride=stride)

    def _do_leaky_relu(self, operation: Operation) -> None:
        alpha = self.graph.options(operation, "LeakyReluOptions").Alpha()
        self._layer(operation.outputs[0], "leaky", self._value(operation.inputs[0]), alpha=float(alpha))

    def _do_add(self, operation: Operation) -> None:
        left, right = (self.seen.get(i, _Value("nothing")) for i in operation.inputs)
        if self.graph.options(operation, "AddOptions").FusedActivationFunction() != 0:
            raise ExportError(f"an ADD of {self.file} has an activation fused in: none is read")
        if right.kind == "zeros":
            self.seen[operation.outputs[0]] = _Value("overlap", left.name)
        else:
            self._layer(operation.outputs[0], "add", *(self._value(i) for i in operation.inputs))

    def _do_split(self, operation: Operation) -> None:
        count, width = len(operation.outputs), self.graph.shape(operation.inputs[1])[3]
        axis = self.graph.constant(operation.inputs[0])
        if axis is None or int(axis.reshape(-1)[0]) not in (-1, 3):
            raise ExportError(f"{self.file} splits values along another axis than channels")
        part = width // count
        for i, tensor in enumerate(operation.outputs):
            name = self._value(operation.inputs[1])
            self._layer(tensor, "split", name, begin=i * part, end=(i + 1) * part)

    def _weights(self, operation: Operation, weight: int, bias: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight (out, taps, 1, in) and bias (out), float32."""
        found = self.graph.constant(operation.inputs[weight])
        if found is None or found.ndim != 4:
            raise ExportError(f"a {operation.kind} of {self.file} has no constant weight of 4 axes")
        given = operation.inputs[bias] if len(operation.inputs) > bias else -1
        offset = self.graph.constant(given) if given >= 0 else None
        return found.astype(np.float32), None if offset is None else offset.astype(np.float32)

"""Small seeded TFLite files in the layout of Lyra's: one frame at a time, the past in variables, partly int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tflite

OP, TYPE = tflite.BuiltinOperator, tflite.TensorType
_TYPES = {"float32": TYPE.FLOAT32, "int8": TYPE.INT8, "int32": TYPE.INT32, "resource": TYPE.RESOURCE}
ALPHA = 0.3


class LiteWriter:
    """One subgraph being written."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[dict[str, Any]] = []
        self.operations: list[tuple[int, list[int], list[int], str, dict[str, int | float]]] = []

    def tensor(
        self, shape: tuple[int, ...], kind: str = "float32", data: np.ndarray | None = None,
        scale: np.ndarray | None = None, axis: int = 0,
    ) -> int:  # fmt: skip
        self.tensors.append({"shape": shape, "kind": kind, "data": data, "scale": scale, "axis": axis})
        return len(self.tensors) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        found: tuple[int, ...] = self.tensors[tensor]["shape"]
        return found

    def floats(self, *shape: int, size: float = 1.0) -> int:
        data = (self.rng.standard_normal(shape) * size).astype(np.float32)
        return self.tensor(shape, data=data)

    def integers(self, *shape: int, size: float = 1.0) -> int:
        """An int8 weight with a scale for each of its first axis."""
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        return self.tensor(shape, "int8", data, np.full(shape[0], size / 60, np.float32))

    def numbers(self, *values: int) -> int:
        return self.tensor((len(values),), "int32", np.array(values, np.int32))

    def op(
        self, kind: int, inputs: list[int], shape: tuple[int, ...], options: str = "", **fields: int | float
    ) -> int:
        made = self.tensor(shape)
        self.operations.append((kind, inputs, [made], options, fields))
        return made

    # what a causal network is made of

    def remembered(self, x: int, frames: int) -> int:
        """[variable | x]; the variable is then what x ended with."""
        _, length, _, width = self.shape(x)
        handle = self.tensor((), "resource")
        self.operations.append((OP.VAR_HANDLE, [], [handle], "VarHandleOptions", {}))
        past = self.op(OP.READ_VARIABLE, [handle], (1, frames, 1, width))
        joined = self.op(
            OP.CONCATENATION, [past, x], (1, frames + length, 1, width), "ConcatenationOptions", Axis=1
        )
        self.assign(handle, self.slice(joined, -frames, 0, frames))
        return joined

    def slice(self, x: int, begin: int, end: int, frames: int) -> int:
        where = [
            self.numbers(0, begin, 0, 0),
            self.numbers(1, end, 1, self.shape(x)[3]),
            self.numbers(1, 1, 1, 1),
        ]
        return self.op(
            OP.STRIDED_SLICE, [x, *where], (1, frames, 1, self.shape(x)[3]), "StridedSliceOptions",
            BeginMask=13, EndMask=13 if end else 15,
        )  # fmt: skip

    def assign(self, handle: int, value: int) -> None:
        self.operations.append((OP.ASSIGN_VARIABLE, [handle, value], [], "", {}))

    def conv(
        self, x: int, out: int, taps: int = 1, stride: int = 1, groups: int = 1, *, rounded: bool = False
    ) -> int:
        if context := taps - stride:
            x = self.remembered(x, context)
        _, length, _, width = self.shape(x)
        inputs = width // groups
        size = (taps * inputs) ** -0.5
        made = (1, (length - taps) // stride + 1, 1, out)
        fields = {"Padding": 1, "StrideH": stride, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
        if not rounded:
            weight, bias = self.floats(out, taps, 1, inputs, size=size), self.floats(out, size=0.1)
            return self.op(OP.CONV_2D, [x, weight, bias], made, "Conv2DOptions", **fields)
        x = self.op(OP.QUANTIZE, [x], self.shape(x))
        weight = self.integers(out, taps, 1, inputs, size=size)
        bias = self.tensor(
            (out,), "int32", self.rng.integers(-99, 99, out).astype(np.int32), np.full(out, 1e-3, np.float32)
        )
        y = self.op(OP.CONV_2D, [x, weight, bias], made, "Conv2DOptions", **fields)
        return self.op(OP.DEQUANTIZE, [y], made)

    def depthwise(self, x: int, dilation: int) -> int:
        _, length, _, width = self.shape(x)
        x = self.remembered(x, 2 * dilation)
        weight, bias = self.floats(1, 3, 1, width, size=0.5), self.floats(width, size=0.1)
        return self.op(
            OP.DEPTHWISE_CONV_2D, [x, weight, bias], (1, length, 1, width), "DepthwiseConv2DOptions", Padding=1,
            StrideH=1, StrideW=1, DilationHFactor=dilation, DilationWFactor=1, DepthMultiplier=1,
        )  # fmt: skip

    def leaky(self, x: int) -> int:
        return self.op(OP.LEAKY_RELU, [x], self.shape(x), "LeakyReluOptions", Alpha=ALPHA)

    def residual(self, x: int, dilation: int, *, rounded: bool = False) -> int:
        width = self.shape(x)[3]
        y = self.leaky(self.conv(self.depthwise(self.leaky(x), dilation), width))
        y = self.conv(y, width, groups=2, rounded=rounded)
        return self.op(OP.ADD, [y, x], self.shape(x), "AddOptions")

    def upsample(self, x: int, out: int, taps: int, stride: int) -> int:
        """A transposed convolution whose overlap with the next frame lies in a variable, bias taken off."""
        _, length, _, width = self.shape(x)
        more, whole = taps - stride, (length - 1) * stride + taps
        handle = self.tensor((), "resource")
        self.operations.append((OP.VAR_HANDLE, [], [handle], "VarHandleOptions", {}))
        past = self.op(OP.READ_VARIABLE, [handle], (1, more, 1, out))
        zeros = self.tensor(
            (1, length * stride, 1, out), data=np.zeros((1, length * stride, 1, out), np.float32)
        )
        tail = self.op(OP.CONCATENATION, [past, zeros], (1, whole, 1, out), "ConcatenationOptions", Axis=1)
        weight, bias = self.floats(out, taps, 1, width, size=width**-0.5), self.floats(out, size=0.1)
        y = self.op(
            OP.TRANSPOSE_CONV, [self.numbers(1, whole, 1, out), weight, x, bias], (1, whole, 1, out),
            "TransposeConvOptions", Padding=1, StrideH=stride, StrideW=1,
        )  # fmt: skip
        total = self.op(OP.ADD, [y, tail], (1, whole, 1, out), "AddOptions")
        last = self.slice(total, -more, 0, more)
        self.assign(handle, self.op(OP.SUB, [last, bias], self.shape(last), "SubOptions"))
        return self.slice(total, 0, length * stride, length * stride)

    def halves(self, x: int) -> tuple[int, int]:
        _, length, _, width = self.shape(x)
        parts = [self.tensor((1, length, 1, width // 2)) for _ in range(2)]
        axis = self.tensor((), "int32", np.array(-1, np.int32))
        self.operations.append((OP.SPLIT, [axis, x], parts, "SplitOptions", {"NumSplits": 2}))
        return parts[0], parts[1]

    def joined(self, *parts: int) -> int:
        _, length, _, _ = self.shape(parts[0])
        width = sum(self.shape(part)[3] for part in parts)
        return self.op(OP.CONCATENATION, list(parts), (1, length, 1, width), "ConcatenationOptions", Axis=-1)

    def reshape(self, x: int, *shape: int) -> int:
        return self.op(OP.RESHAPE, [x, self.numbers(*shape)], shape, "ReshapeOptions")


def encoder(seed: int, latent: int = 6) -> tuple[LiteWriter, int, int]:
    w = LiteWriter(seed)
    audio = w.tensor((1, 320))
    x = w.conv(w.reshape(audio, 1, 320, 1, 1), 4, 64, 16)
    x = w.residual(w.residual(x, 1), 3)
    x = w.residual(w.conv(w.leaky(x), 8, 10, 5), 9)
    x = w.residual(w.conv(w.leaky(x), 8, 4, 2, groups=2), 1, rounded=True)
    x = w.leaky(w.conv(w.leaky(x), 12, 4, 2, rounded=True))
    return w, audio, w.reshape(w.conv(x, latent, 3, groups=2, rounded=True), 1, 1, latent)


def decoder(seed: int, latent: int = 6) -> tuple[LiteWriter, int, int]:
    w = LiteWriter(seed)
    given = w.tensor((1, 1, latent))
    x = w.leaky(w.conv(w.reshape(given, 1, 1, 1, latent), 8, 3, groups=2))
    x = w.joined(*(w.upsample(part, 4, 4, 2) for part in w.halves(x)))
    x = w.residual(w.leaky(x), 3, rounded=True)
    x = w.joined(*(w.upsample(part, 3, 4, 2) for part in w.halves(w.leaky(x))))
    x = w.upsample(w.leaky(w.residual(x, 9)), 4, 10, 5)
    return w, given, w.reshape(w.upsample(w.leaky(w.residual(x, 1)), 1, 64, 16), 1, 320)


def quantizer(seed: int, levels: int = 4, codes: int = 16, latent: int = 6) -> tuple[LiteWriter, int, int]:
    """The decode graph: each level's code gathers a row of its table."""
    w = LiteWriter(seed)
    given = w.tensor((levels, 1, 1), "int32")
    total = -1
    for level in reversed(range(levels)):  # the file's own order is not that of the levels
        where = [w.numbers(level, 0, 0), w.numbers(level + 1, 1, 1), w.numbers(1, 1, 1)]
        code = w.op(OP.STRIDED_SLICE, [given, *where], (1, 1), "StridedSliceOptions", ShrinkAxisMask=1)
        row = w.op(
            OP.GATHER, [w.floats(codes, latent, size=0.5**level), code], (1, 1, latent), "GatherOptions"
        )
        total = row if total < 0 else w.op(OP.ADD, [total, row], (1, 1, latent), "AddOptions")
    return w, given, total


def save_lyra(folder: Path, seed: int = 0, *, levels: int = 4, codes: int = 16) -> Path:
    """A folder with the three files under Lyra's names."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "soundstream_encoder.tflite", *encoder(seed), name="main")
    save(folder / "lyragan.tflite", *decoder(seed + 1), name="main")
    save(folder / "quantizer.tflite", *quantizer(seed + 2, levels, codes), name="decode")
    return folder


def save(path: Path, writer: LiteWriter, given: int, made: int, name: str) -> Path:
    """Write one subgraph as a TFLite file."""
    b = flatbuffers.Builder(1024)
    kinds = sorted({operation[0] for operation in writer.operations})
    buffers = [_buffer(b, None)]
    tensors = []
    for i, tensor in enumerate(writer.tensors):
        data = tensor["data"]
        if data is not None:
            buffers.append(_buffer(b, np.ascontiguousarray(data)))
        tensors.append(_tensor(b, f"t{i}", tensor, len(buffers) - 1 if data is not None else 0))
    operators = [_operator(b, kinds.index(kind), *rest) for kind, *rest in writer.operations]
    label, ins, outs = b.CreateString(name), _ints(b, [given]), _ints(b, [made])
    tensor_list, operator_list = _offsets(b, tensors), _offsets(b, operators)
    tflite.SubGraphStart(b)
    tflite.SubGraphAddName(b, label)
    tflite.SubGraphAddTensors(b, tensor_list)
    tflite.SubGraphAddInputs(b, ins)
    tflite.SubGraphAddOutputs(b, outs)
    tflite.SubGraphAddOperators(b, operator_list)
    graphs = _offsets(b, [tflite.SubGraphEnd(b)])
    codes = _offsets(b, [_code(b, kind) for kind in kinds])
    buffer_list = _offsets(b, buffers)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, codes)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, buffer_list)
    b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
    path.write_bytes(bytes(b.Output()))
    return path


def _buffer(b: Any, data: np.ndarray | None) -> int:
    vector = None if data is None else b.CreateByteVector(data.tobytes())
    tflite.BufferStart(b)
    if vector is not None:
        tflite.BufferAddData(b, vector)
    return int(tflite.BufferEnd(b))


def _tensor(b: Any, name: str, tensor: dict[str, Any], buffer: int) -> int:
    label, shape, quantization = b.CreateString(name), _ints(b, tensor["shape"]), None
    if tensor["scale"] is not None:
        scale = b.CreateNumpyVector(tensor["scale"])
        zero = b.CreateNumpyVector(np.zeros(len(tensor["scale"]), np.int64))
        tflite.QuantizationParametersStart(b)
        tflite.QuantizationParametersAddScale(b, scale)
        tflite.QuantizationParametersAddZeroPoint(b, zero)
        tflite.QuantizationParametersAddQuantizedDimension(b, tensor["axis"])
        quantization = tflite.QuantizationParametersEnd(b)
    tflite.TensorStart(b)
    tflite.TensorAddShape(b, shape)
    tflite.TensorAddType(b, _TYPES[tensor["kind"]])
    tflite.TensorAddBuffer(b, buffer)
    tflite.TensorAddName(b, label)
    if quantization is not None:
        tflite.TensorAddQuantization(b, quantization)
    return int(tflite.TensorEnd(b))


def _operator(
    b: Any, code: int, inputs: list[int], outputs: list[int], options: str, fields: dict[str, int | float]
) -> int:
    table = None
    if options:
        getattr(tflite, f"{options}Start")(b)
        for name, value in fields.items():
            getattr(tflite, f"{options}Add{name}")(b, value)
        table = getattr(tflite, f"{options}End")(b)
    ins, outs = _ints(b, inputs), _ints(b, outputs)
    tflite.OperatorStart(b)
    tflite.OperatorAddOpcodeIndex(b, code)
    tflite.OperatorAddInputs(b, ins)
    tflite.OperatorAddOutputs(b, outs)
    if table is not None:
        tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, options))
        tflite.OperatorAddBuiltinOptions(b, table)
    return int(tflite.OperatorEnd(b))


def _code(b: Any, kind: int) -> int:
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(kind, 127))
    tflite.OperatorCodeAddBuiltinCode(b, kind)
    return int(tflite.OperatorCodeEnd(b))


def _ints(b: Any, values: Any) -> int:
    return int(b.CreateNumpyVector(np.array(values, np.int32)))


def _offsets(b: Any, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())

"""Descript's audio codec (arXiv 2306.06546) at 16 kHz, in its own tensor names, as codec graphs.

The network is not causal: every convolution looks as far ahead as back. The encoder runs on whole recordings,
as it was trained. The decoder streams: each convolution waits for what it looks ahead at, so the audio lies
``delay_frames`` behind the codes; before the first code every layer reads zeros, as its padding has them. A
stream's audio begins with silence of that length, and its last frames are those of the stream so far.

Released weights are pickles; ``speechssm export`` says how to make safetensors of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle.shapes import ReadyCodecShape
from speechssm.errors import ExportError

from ..graphs.builder import FLOAT, INT64, GraphBuilder
from ..graphs.residual import summed_codes
from .causal import CausalNodes, Layer, Network
from .part import ReadyPart

PART = "codec"
MARK = "quantizer.quantizers.0.codebook.weight"
"""Tensor that tells the layout."""
DILATIONS = (1, 3, 9)
_NAMES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
"""Weight norm's pairs, as older and newer PyTorch name them."""

Tensors = Mapping[str, np.ndarray]


def dac_part(tensors: Tensors) -> tuple[ReadyCodecShape, ReadyPart]:
    """The codec as graphs. Raises ExportError naming the tensor that is missing, left over or of another shape."""
    reader = _Reader(tensors)
    encoder = reader.encoder()
    decoder = reader.decoder()
    projections, tables = reader.quantizer(encoder.widths()[encoder.output])
    reader.check_all_read()
    levels, codes = len(tables), len(tables[0].normed)
    delay = -(-reader.delay // FRAME_SAMPLES)
    shape = ReadyCodecShape(source="dac", levels=levels, codes=codes, delay_frames=delay)
    weights = {**encoder.weights("E."), **decoder.weights("D."), **projections}
    weights["codebooks"] = np.concatenate([t.summed for t in tables]).astype(np.float32)
    graphs = {
        "codec_encode": (
            _encode(encoder, shape, tables[0].normed.shape[1], weights["codebooks"].shape[1]),
            (),
        ),
        "codec_decode": (_decode(decoder, shape, weights["codebooks"].shape[1]), decoder.state()),
    }
    about = f"DAC, {levels} levels of {codes} codes, audio {delay} frames behind"
    return shape, ReadyPart(graphs, weights, about)


class _Table:
    """One level: unit codes (c,k) that are looked for, and what each adds to the sum (c,latent)."""

    def __init__(self, codes: np.ndarray, out: np.ndarray, bias: np.ndarray) -> None:
        length = np.linalg.norm(codes.astype(np.float64), axis=1, keepdims=True)
        self.normed = (codes / np.maximum(length, 1e-12)).astype(np.float32)
        self.summed = (codes.astype(np.float64) @ out.T + bias).astype(np.float32)


class _Reader:
    """Tensors to layers; remembers what was read."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors, self.read = tensors, set[str]()
        self.layers: list[Layer] = []
        self.letter = ""
        self.rate, self.late, self.delay = 1, 0, 0

    def check_all_read(self) -> None:
        left = set(self.tensors) - self.read
        if left:
            raise ExportError(
                f"the checkpoint has a tensor {min(left)} that DAC does not have: it is of another model"
            )

    # tensors

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        if name not in self.tensors:
            raise ExportError(f"the checkpoint has no tensor {name}: it is incomplete or no DAC")
        array = self.tensors[name]
        if len(array.shape) != len(shape) or any(
            w not in (None, n) for n, w in zip(array.shape, shape, strict=True)
        ):
            wanted = [n if n is not None else "any" for n in shape]
            raise ExportError(f"tensor {name} has shape {list(array.shape)}, expected {wanted}")
        self.read.add(name)
        return array

    def weight(self, name: str, *shape: int | None) -> np.ndarray:
        """A weight-normed weight: g v / |v|, the norm over all axes but the first."""
        for g_name, v_name in _NAMES:
            if f"{name}.{v_name}" in self.tensors:
                v = self.take(f"{name}.{v_name}", *shape).astype(np.float64)
                g = self.take(f"{name}.{g_name}", v.shape[0], 1, 1)
                made: np.ndarray = (g * v / np.sqrt((v**2).sum((1, 2), keepdims=True))).astype(np.float32)
                return made
        return self.take(f"{name}.weight_v", *shape)

    def count(self, pattern: str) -> int:
        """How many numbers the names of ``pattern`` have: the highest and one more."""
        found = [int(m[1]) for name in self.tensors if (m := re.match(pattern, name))]
        return max(found, default=-1) + 1

    # layers

    def add(self, kind: str, *inputs: str, **fields: object) -> str:
        name = f"{self.letter}{len(self.layers):03d}"
        self.layers.append(Layer(kind, inputs, name, **fields))  # type: ignore[arg-type]
        return name

    def place(self) -> dict[str, int]:
        """Where the decoder's current value lies in time; the encoder runs on whole recordings."""
        return {"rate": self.rate, "late": self.late} if self.letter == "D" else {}

    def snake(self, x: str, name: str, width: int) -> str:
        return self.add("snake", x, weight=self.take(f"{name}.alpha", 1, width, 1).reshape(-1))

    def conv(
        self,
        x: str,
        name: str,
        inputs: int,
        out: int | None,
        taps: int,
        *,
        dilation: int = 1,
        stride: int = 1,
    ) -> str:
        """A convolution padded on both sides, as one of the past that comes later by its padding."""
        weight = self.weight(name, out, inputs, taps)
        bias = self.take(f"{name}.bias", weight.shape[0])
        made = self.add(
            "conv", x, weight=weight.transpose(0, 2, 1), bias=bias, dilation=dilation, stride=stride,
            **(self.place() if taps > 1 else {}),
        )  # fmt: skip
        self.late += (taps - 1) * dilation // 2
        return made

    def residual(self, x: str, name: str, width: int, dilation: int) -> str:
        before = self.late
        y = self.conv(
            self.snake(x, f"{name}.block.0", width), f"{name}.block.1", width, width, 7, dilation=dilation
        )
        y = self.conv(self.snake(y, f"{name}.block.2", width), f"{name}.block.3", width, width, 1)
        if self.letter == "D":  # what streams is as late as its other branch
            x = self.add("delay", x, frames=self.late - before)
        return self.add("add", y, x)

    def encoder(self) -> Network:
        """Audio to latents; a strided convolution is padded by half of its stride, rounded up, on either side."""
        self.letter, self.layers, self.rate, self.late = "E", [], FRAME_SAMPLES, 0
        stages = self.count(r"encoder\.block\.(\d+)\.block\.")
        width = len(self.weight("encoder.block.0", None, 1, 7))
        x = self.conv("in", "encoder.block.0", 1, width, 7)
        for i in range(1, stages):
            name = f"encoder.block.{i}"
            for j, dilation in enumerate(DILATIONS):
                x = self.residual(x, f"{name}.block.{j}", width, dilation)
            x = self.snake(x, f"{name}.block.3", width)
            weight = self.weight(f"{name}.block.4", None, width, None)
            stride, out = weight.shape[2] // 2, weight.shape[0]
            x = self.conv(x, f"{name}.block.4", width, out, 2 * stride, stride=stride)
            width = out
        x = self.snake(x, f"encoder.block.{stages}", width)
        self.conv(x, f"encoder.block.{stages + 1}", width, None, 3)
        self._check_rate("encoder", math.prod(layer.stride for layer in self.layers))
        return Network(tuple(self.layers), "in", self.layers[-1].output, 1)

    def decoder(self) -> Network:
        self.letter, self.layers, self.rate, self.late = "D", [], 1, 0
        stages = self.count(r"decoder\.model\.(\d+)\.block\.")
        first = self.weight("decoder.model.0", None, None, 7)
        width, latent = first.shape[:2]
        x = self.conv("in", "decoder.model.0", latent, width, 7)
        for i in range(1, stages):
            name = f"decoder.model.{i}"
            x = self.snake(x, f"{name}.block.0", width)
            weight = self.weight(f"{name}.block.1", width, None, None)
            stride, out = weight.shape[2] // 2, weight.shape[1]
            bias = self.take(f"{name}.block.1.bias", out)
            x = self.add(
                "transpose", x, weight=weight.transpose(1, 2, 0), bias=bias, stride=stride, **self.place()
            )
            self.rate, self.late, width = self.rate * stride, self.late * stride + math.ceil(stride / 2), out
            for j, dilation in enumerate(DILATIONS):
                x = self.residual(x, f"{name}.block.{j + 2}", width, dilation)
        x = self.snake(x, f"decoder.model.{stages}", width)
        x = self.conv(x, f"decoder.model.{stages + 1}", width, 1, 7)
        x = self.add("tanh", x, **self.place())
        self._check_rate("decoder", self.rate)
        # Whole frames of delay: what is short of one is waited for as well.
        self.delay = -(-self.late // FRAME_SAMPLES) * FRAME_SAMPLES
        if self.delay > self.late:
            x = self.add("delay", x, frames=self.delay - self.late)
        return Network(tuple(self.layers), "in", x, latent)

    def quantizer(self, latent: int) -> tuple[dict[str, np.ndarray], list[_Table]]:
        levels = self.count(r"quantizer\.quantizers\.(\d+)\.")
        weights: dict[str, np.ndarray] = {}
        tables: list[_Table] = []
        for i in range(levels):
            name = f"quantizer.quantizers.{i}"
            codes = self.take(f"{name}.codebook.weight", None, None)
            size = codes.shape[1]
            inward = self.weight(f"{name}.in_proj", size, latent, 1)[:, :, 0]
            outward = self.weight(f"{name}.out_proj", latent, size, 1)[:, :, 0]
            tables.append(_Table(codes, outward, self.take(f"{name}.out_proj.bias", latent)))
            weights[f"level{i}_in"] = np.ascontiguousarray(inward.T)
            weights[f"level{i}_bias"] = self.take(f"{name}.in_proj.bias", size)
            weights[f"level{i}_codes"] = np.ascontiguousarray(tables[-1].normed.T)
        return weights, tables

    @staticmethod
    def _check_rate(part: str, rate: int) -> None:
        if rate != FRAME_SAMPLES:
            raise ExportError(
                f"the {part} has frames of {rate} samples, expected {FRAME_SAMPLES}: only DAC at 16 kHz and 50 Hz fits"
            )


def _encode(network: Network, shape: ReadyCodecShape, size: int, latent: int) -> GraphBuilder:
    """``codec_encode``: audio (b,n) -> codes (b,q,f), every convolution padded on both sides."""
    g = GraphBuilder("codec_encode")
    audio = g.input("audio", FLOAT, ("b", "n"))
    left = WholeNodes(g, network, PART, "E.").run(g.op("Unsqueeze", audio, g.const([2])), None)[0]
    table = g.weight(PART, "codebooks", (shape.levels * shape.codes, latent))
    chosen = []
    for level in range(shape.levels):
        with g.scope(f"level{level}"):
            small = g.op("MatMul", left, g.weight(PART, f"level{level}_in", (latent, size)))
            small = g.op("Add", small, g.weight(PART, f"level{level}_bias", (size,)))
            # Codes have unit length, and the length of what is looked up changes no order.
            near = g.op("MatMul", small, g.weight(PART, f"level{level}_codes", (size, shape.codes)))
            code = g.op("ArgMax", near, axis=-1, keepdims=0)
            chosen.append(g.op("Unsqueeze", code, g.const([1])))
            if level + 1 < shape.levels:
                row = g.op("Add", code, g.const(level * shape.codes))
                left = g.op("Sub", left, g.op("Gather", table, row))
    codes = g.op("Concat", *chosen, axis=1) if len(chosen) > 1 else chosen[0]
    g.output("codes", codes, INT64, ("b", shape.levels, "f"))
    return g


def _decode(network: Network, shape: ReadyCodecShape, latent: int) -> GraphBuilder:
    """``codec_decode``: codes (b,q,f) + state -> audio (b,n), ``delay_frames`` behind, + state."""
    g = GraphBuilder("codec_decode")
    given = g.input("codes", INT64, ("b", shape.levels, "f"))
    state = network.state()
    before = {s.name: g.input(f"in_{s.name}", INT64 if s.dtype == "int64" else FLOAT, s.axes) for s in state}
    table = g.weight(PART, "codebooks", (shape.levels * shape.codes, latent))
    x = summed_codes(g, given, table, shape.levels, shape.codes)
    made, after = CausalNodes(g, network, PART, "D.").run(x, before)
    g.output("audio", g.op("Squeeze", made, g.const([2])), FLOAT, ("b", "n"))
    for s in state:
        g.output(f"out_{s.name}", after[s.name], INT64 if s.dtype == "int64" else FLOAT, s.axes)
    return g


class WholeNodes(CausalNodes):
    """The same layers over a whole recording: padding on both sides, nothing waits."""

    def _padded(self, layer: Layer, x: str) -> str:
        """x between zeros. Of an odd stride the last padded value is never read, so it is left out."""
        before = math.ceil(layer.stride / 2) if layer.stride > 1 else layer.context // 2
        return self.g.op("Pad", x, self.g.const([0, before, 0, 0, layer.context - before, 0]))


__all__ = ["MARK", "WholeNodes", "dac_part"]

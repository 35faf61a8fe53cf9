"""Graphs ``codec_encode`` and ``codec_decode``: the codec with standard operators only.

``codec_decode`` streams. On ONNX Runtime CPU in float32, decoding whole and decoding in any chunks
agree bit for bit, as do a row alone and in a batch, at any width and thread count, because every
operator in it gives an element the same value wherever the element lies:

- matrix products have constant weights on the right (the packed kernels sum in one order for any
  number of rows);
- depthwise convolutions are ``kernel`` shifted multiply-adds in a fixed order, the overlap-add is a
  chain of additions whose partial sums are the carried tail;
- everything else elementwise is an IEEE basic operation (add, multiply, divide, root, compare); no
  exp, sine or cosine, whose vectorised bodies and scalar ends differ (6e-8 for ``Cos``);
- ``LayerNormalization`` normalises each frame by itself.

``tests/export/test_codec_exact.py`` holds the probe. The constants must be packed when the session is
made, so graph optimisation and weight prepacking stay at their defaults.

The inverse STFT is a constant matrix. It is written as a gather from one period of a cosine, which
engines fold when they load the graph: 1280 x 1280 values cost no bytes in the bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle.shapes.codec import CodecShape
from speechssm.bundle.state import StateTensor

from ..models.codec import DIRECTION_EPS, NORM_EPS, POWER_EPS, Codec, phase_bins
from ..models.codec_bands import GAIN_POWER, band_analysis, synthesis_window
from .builder import FLOAT, INT64, GraphBuilder
from .residual import residual_codes, summed_codes

PART = "codec"
"""Name of the weight file both graphs read."""
_END = np.iinfo(np.int64).max
_FRAMES = 1
"""The axis f of (b, f, d) values."""


def codec_state(shape: CodecShape) -> tuple[StateTensor, ...]:
    """State of ``codec_decode``: past inputs of each layer's convolution, then the overlap tail (n)."""
    layers = tuple(
        StateTensor(name=f"C{i:02d}_conv", kind="conv", shape=(shape.kernel - 1, shape.decoder_width))
        for i in range(shape.decoder_layers)
    )
    return (*layers, StateTensor(name="tail", kind="tail", shape=(shape.fft - FRAME_SAMPLES,)))


def build_codec_encode(shape: CodecShape, stored: int = FLOAT) -> GraphBuilder:
    """``codec_encode``: audio (b, n) float32, n a multiple of 320 -> codes (b, q, f) int64, f = n/320."""
    g = GraphBuilder("codec_encode")
    net = _Net(g, stored)
    audio = g.input("audio", FLOAT, ("b", "n"))
    with g.scope("encoder"):
        x = net.linear(
            "encoder_input", _features(g, audio, shape), _feature_width(shape), shape.encoder_width
        )
        for i in range(shape.encoder_layers):
            x, _ = net.block(f"E{i:02d}", x, None, shape.encoder_width, shape.expansion, shape.kernel)
        x = net.norm(x, shape.encoder_width)
        x = _slice(g, x, _FRAMES, shape.lookahead, _END)
        left = net.linear("encoder_output", x, shape.encoder_width, shape.latent)
    books = net.codebooks(shape)
    codes = residual_codes(g, left, books, shape.levels, shape.codes)
    g.output("codes", codes, INT64, ("b", shape.levels, "f"))
    return g


def build_codec_decode(shape: CodecShape, stored: int = FLOAT) -> GraphBuilder:
    """``codec_decode``: codes (b, q, f) int64 + state -> audio (b, n) float32, n = 320 f, + state."""
    g = GraphBuilder("codec_decode")
    net = _Net(g, stored)
    codes = g.input("codes", INT64, ("b", shape.levels, "f"))
    state = codec_state(shape)
    before = [g.input(f"in_{s.name}", FLOAT, ("b", *s.shape)) for s in state]
    after: list[str] = []
    with g.scope("codebooks"):
        books = net.codebooks(shape)
        x = summed_codes(g, codes, books, shape.levels, shape.codes)
    with g.scope("decoder"):
        x = net.linear("decoder_input", x, shape.latent, shape.decoder_width)
        for i in range(shape.decoder_layers):
            x, past = net.block(f"D{i:02d}", x, before[i], shape.decoder_width, shape.expansion, shape.kernel)
            after.append(past)
        x = net.norm(x, shape.decoder_width)
        direction = net.linear("direction", x, shape.decoder_width, shape.fft)
        gain = net.linear("gain", x, shape.decoder_width, shape.bins)
        waves = g.op("MatMul", _coefficients(g, direction, gain, shape), _synthesis(g, shape))
        audio, tail = _overlap_add(g, waves, before[-1], shape)
        after.append(tail)
    g.output("audio", audio, FLOAT, ("b", "n"))
    for tensor, value in zip(state, after, strict=True):
        g.output(f"out_{tensor.name}", value, FLOAT, ("b", *tensor.shape))
    return g


def codec_weights(model: Codec) -> dict[str, NDArray[np.float32]]:
    """The model's weights in the graphs' layout: linear weights (in, out), layer scales folded in."""
    made: dict[str, Any] = {}

    def linear(name: str, layer: Any, scale: Any = 1.0) -> None:
        made[f"{name}_w"] = (layer.weight.T * scale).detach()
        made[f"{name}_b"] = (layer.bias * scale).detach()

    linear("encoder_input", model.encoder.input)
    linear("encoder_output", model.encoder.output)
    linear("decoder_input", model.decoder.input)
    linear("direction", model.decoder.direction)
    linear("gain", model.decoder.gain)
    for letter, half in (("E", model.encoder), ("D", model.decoder)):
        for i, block in enumerate(half.layers()):
            made[f"{letter}{i:02d}_conv"] = block.depthwise.detach()
            linear(f"{letter}{i:02d}_up", block.up)
            linear(f"{letter}{i:02d}_down", block.down, block.scale)
    made["codebooks"] = model.codebooks.detach().flatten(0, 1)
    return {k: np.ascontiguousarray(v.float().cpu().numpy()) for k, v in made.items()}


class _Net:
    """The layers both graphs share."""

    def __init__(self, g: GraphBuilder, stored: int) -> None:
        self.g = g
        self.stored = stored

    def weight(self, name: str, *shape: int) -> str:
        return self.g.weight(PART, name, shape, self.stored)

    def codebooks(self, shape: CodecShape) -> str:
        """(q c, latent): level l's code k is row l c + k."""
        return self.weight("codebooks", shape.levels * shape.codes, shape.latent)

    def linear(self, name: str, x: str, inputs: int, outputs: int) -> str:
        product = self.g.op("MatMul", x, self.weight(f"{name}_w", inputs, outputs))
        return self.g.op("Add", product, self.weight(f"{name}_b", outputs))

    def norm(self, x: str, width: int) -> str:
        ones = self.g.const(np.ones(width, np.float32))
        return self.g.op("LayerNormalization", x, ones, axis=-1, epsilon=NORM_EPS)

    def block(
        self, name: str, x: str, past: str | None, width: int, expansion: int, kernel: int
    ) -> tuple[str, str]:
        """One block: x (b, f, d), past (b, kernel-1, d) or None for silence -> y (b, f, d), new past."""
        g = self.g
        with g.scope(name):
            taps = self.weight(f"{name}_conv", kernel, width)
            if past is None:
                seen = g.op("Pad", x, g.const([0, kernel - 1, 0, 0, 0, 0]))
            else:
                seen = g.op("Concat", past, x, axis=_FRAMES)
            y = ""
            for j in range(kernel):
                behind = kernel - 1 - j
                shifted = _slice(g, seen, _FRAMES, j, -behind if behind else _END)
                term = g.op("Mul", shifted, g.op("Gather", taps, g.const(j)))
                y = g.op("Add", y, term) if j else term
            y = self.norm(y, width)
            y = g.op("HardSwish", self.linear(f"{name}_up", y, width, expansion * width))
            y = self.linear(f"{name}_down", y, expansion * width, width)
            return g.op("Add", x, y), _slice(g, seen, _FRAMES, 1 - kernel, _END)


def _slice(g: GraphBuilder, x: str, axis: int, start: int, stop: int) -> str:
    return g.op("Slice", x, g.const([start]), g.const([stop]), g.const([axis]))


def _feature_width(shape: CodecShape) -> int:
    return shape.bands + 2 * phase_bins(shape)


def _waves(g: GraphBuilder, fft: int, bins: int, period: NDArray[np.float64]) -> str:
    """(bins, fft): row k holds ``period`` (fft) read k times as fast."""
    turns = g.op(
        "Mul", g.const(np.arange(bins, dtype=np.int64)[:, None]), g.const(np.arange(fft, dtype=np.int64))
    )
    return g.op("Gather", g.const(period.astype(np.float32)), g.op("Mod", turns, g.const(fft)))


def _synthesis(g: GraphBuilder, shape: CodecShape) -> str:
    """(fft, fft): coefficients (real parts, then inner imaginary parts) to windowed samples."""
    fft, bins = shape.fft, shape.bins
    angle = 2 * np.pi * np.arange(fft) / fft
    unit = fft**-0.5
    cosines = _waves(g, fft, bins, 2**0.5 * unit * np.cos(angle))
    sines = _slice(g, _waves(g, fft, bins, -(2**0.5) * unit * np.sin(angle)), 0, 1, -1)
    # 0 Hz and the Nyquist frequency have no mirror image
    edges = np.ones((bins, 1), np.float32)
    edges[0] = edges[-1] = 0.5**0.5
    rows = g.op("Concat", g.op("Mul", cosines, g.const(edges)), sines, axis=0)
    return g.op("Mul", rows, g.const(synthesis_window(shape)))


def _features(g: GraphBuilder, audio: str, shape: CodecShape) -> str:
    """audio (b, n) -> (b, f + lookahead, bands + 2 phase bins), as ``Encoder.features``."""
    fft, hops, low = shape.fft, shape.hops, phase_bins(shape)
    ahead = hops - 1 + shape.lookahead
    blocks = g.op("Reshape", audio, g.const([0, -1, FRAME_SAMPLES]))
    blocks = g.op("Pad", blocks, g.const([0, 0, 0, 0, ahead, 0]))
    parts = [_slice(g, blocks, _FRAMES, j, j - hops + 1 if j + 1 < hops else _END) for j in range(hops)]
    frames = g.op("Concat", *parts, axis=2)
    angle = 2 * np.pi * np.arange(fft) / fft
    window = (0.5 - 0.5 * np.cos(angle)).astype(np.float32)[:, None]
    both = [
        g.op(
            "Mul",
            g.op("Transpose", _waves(g, fft, shape.bins, fft**-0.5 * wave), perm=[1, 0]),
            g.const(window),
        )
        for wave in (np.cos(angle), -np.sin(angle))
    ]
    real, imaginary = (g.op("MatMul", frames, matrix) for matrix in both)
    power = g.op("Add", g.op("Mul", real, real), g.op("Mul", imaginary, imaginary))
    bands = g.op("MatMul", power, g.const(band_analysis(shape)))
    bands = g.op("Mul", g.op("Log", g.op("Add", bands, g.const(POWER_EPS))), g.const(0.25))
    root = g.op("Sqrt", g.op("Sqrt", g.op("Add", _slice(g, power, 2, 0, low), g.const(POWER_EPS))))
    waves = [g.op("Div", _slice(g, part, 2, 0, low), root) for part in (real, imaginary)]
    return g.op("Concat", bands, *waves, axis=2)


def _coefficients(g: GraphBuilder, direction: str, gain: str, shape: CodecShape) -> str:
    """direction (b, f, fft), log gain m (b, f, bins) -> coefficients (b, f, fft), as ``Decoder.coefficients``."""
    bins = shape.bins
    gain = g.op("Relu", g.op("Add", g.op("Mul", gain, g.const(1 / GAIN_POWER)), g.const(1.0)))
    for _ in range(GAIN_POWER.bit_length() - 1):
        gain = g.op("Mul", gain, gain)
    real, inner = _slice(g, direction, 2, 0, bins), _slice(g, direction, 2, bins, _END)
    imaginary = g.op("Pad", inner, g.const([0, 0, 1, 0, 0, 1]))
    length = g.op("Add", g.op("Mul", real, real), g.op("Mul", imaginary, imaginary))
    scale = g.op("Div", gain, g.op("Sqrt", g.op("Add", length, g.const(DIRECTION_EPS))))
    scales = g.op("Concat", scale, _slice(g, scale, 2, 1, -1), axis=2)
    return g.op("Mul", direction, scales)


def _overlap_add(g: GraphBuilder, waves: str, tail: str, shape: CodecShape) -> tuple[str, str]:
    """waves (b, f, fft), tail (b, fft-320) -> audio (b, 320 f), new tail.

    Frame i's part j falls on frame i + j. The sum of a frame is built oldest window first, so the
    partial sums that later windows will complete are exactly the tail to carry.
    """
    hops, hop = shape.hops, FRAME_SAMPLES
    pending = g.op("Reshape", tail, g.const([0, hops - 1, hop]))
    rest: list[str] = []
    total = ""
    for j in reversed(range(hops)):
        part = _slice(g, waves, 2, j * hop, (j + 1) * hop)
        total = g.op("Add", _slice(g, total, _FRAMES, 0, -1), part) if total else part
        if j:
            carried = _slice(g, pending, _FRAMES, j - 1, j)
            total = g.op("Concat", carried, total, axis=_FRAMES)
            rest.insert(0, _slice(g, total, _FRAMES, -1, _END))
    audio = g.op("Reshape", total, g.const([0, -1]))
    after = g.op("Concat", *rest, axis=_FRAMES) if len(rest) > 1 else rest[0]
    return audio, g.op("Reshape", after, g.const([0, -1]))

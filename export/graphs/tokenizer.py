"""The tokenizer graph: ``audio (b,n) -> tokens (b,t)``, t = ceil(n/640).

Everything is in the graph, from framing to argmax, in standard operators. The Fourier and mel matrices
are not stored: the cosines are gathered from a table of 480 by a constant index product, which every
engine folds when it loads the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from speechssm.axes import TOKEN_SAMPLES
from speechssm.bundle.shapes import TokenizerShape

from ..models import log_mel
from ..models.tokenizer import ConformerLayer, Tokenizer, distance_slopes
from .builder import FLOAT, INT64, GraphBuilder

PART = "tokenizer"
"""The bundle part whose safetensors file holds the weights."""
NORM_EPS = 1e-5


def build_tokenizer(shape: TokenizerShape, stored: int = FLOAT, *, logits: bool = False) -> GraphBuilder:
    """The graph ``tokenizer``; with ``logits`` a debug flavour that also gives ``logits (b,t,v)``."""
    g = GraphBuilder("tokenizer")
    audio = g.input("audio", FLOAT, ("b", "n"))
    nodes = _Nodes(g, shape, stored)
    scores = nodes.scores(nodes.features(audio))
    g.output("tokens", g.op("ArgMax", scores, axis=-1, keepdims=0), INT64, ("b", "t"))
    if logits:
        g.output("logits", scores, FLOAT, ("b", "t", shape.vocab))
    return g


def tokenizer_weights(model: Tokenizer) -> dict[str, np.ndarray]:
    """Float32 arrays by graph name; linear weights are (in, out)."""
    out: dict[str, np.ndarray] = {}
    _linear(out, "front", model.front)
    _linear(out, "middle", model.middle)
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, ConformerLayer)
        name = f"L{i:02d}"
        for half in ("first", "second"):
            module = getattr(layer, half)
            _norm(out, f"{name}.{half}.norm", module.norm)
            _linear(out, f"{name}.{half}.up", module.up)
            _linear(out, f"{name}.{half}.down", module.down)
        _norm(out, f"{name}.attention.norm", layer.attention.norm)
        _linear(out, f"{name}.attention.qkv", layer.attention.qkv)
        _linear(out, f"{name}.attention.out", layer.attention.out)
        _norm(out, f"{name}.convolution.norm", layer.convolution.norm)
        _linear(out, f"{name}.convolution.gated", layer.convolution.gated)
        out[f"{name}.convolution.depthwise.weight"] = _array(layer.convolution.depthwise.weight)
        assert layer.convolution.depthwise.bias is not None
        out[f"{name}.convolution.depthwise.bias"] = _array(layer.convolution.depthwise.bias)
        _norm(out, f"{name}.convolution.inner_norm", layer.convolution.inner_norm)
        _linear(out, f"{name}.convolution.out", layer.convolution.out)
    _norm(out, "norm", model.norm)
    _linear(out, "head", model.head)
    return out


@dataclass(frozen=True)
class _Nodes:
    """Emits the tokenizer's nodes into ``g``."""

    g: GraphBuilder
    shape: TokenizerShape
    stored: int

    # front end

    def features(self, audio: str) -> str:
        """audio (b,n) -> level-free log-mel (b, 4t, mels)."""
        g = self.g
        with g.scope("log_mel"):
            hops = self._hops(audio)
            views = [self._slice(hops, i, i - 2 or None, axis=1) for i in range(log_mel.HOPS)]
            frames = g.op("Concat", *views, axis=-1)
            cosine = g.op("MatMul", frames, self._fourier(0))
            sine = g.op("MatMul", frames, self._fourier(3 * log_mel.FRAME // 4))
            power = g.op("Add", g.op("Mul", cosine, cosine), g.op("Mul", sine, sine))
            mel = g.op("MatMul", power, g.const(log_mel.mel_matrix(self.shape.mels)))
            # Pooling, not ReduceMean: ONNX Runtime sums a middle axis in another order when b is 1, and its
            # optimizer moves transposes through ReduceMean until the axis is in the middle again.
            pooled = g.op("GlobalAveragePool", g.op("Transpose", mel, perm=[0, 2, 1]))
            mean = g.op("Transpose", pooled, perm=[0, 2, 1])
            overall = g.op("GlobalAveragePool", mean)
            share = g.op("Mul", overall, g.const(np.float32(log_mel.BAND_SHARE)))
            held = g.op("Add", g.op("Add", mean, share), g.const(np.float32(log_mel.SILENCE)))
            log = g.op("Log", g.op("Add", g.op("Div", mel, held), g.const(np.float32(log_mel.FLOOR))))
            centred = g.op("Sub", log, g.const(np.float32(log_mel.CENTRE)))
            return g.op("Div", centred, g.const(np.float32(log_mel.SPREAD)))

    def _hops(self, audio: str) -> str:
        """audio (b,n) -> (b, 4t + 2, 160): zeros to a whole token at the end and a hop on either side."""
        g = self.g
        n = g.op("Shape", audio, start=1, end=2)
        beyond = g.op("Mod", g.op("Neg", n), g.const([TOKEN_SAMPLES]))
        after = g.op("Add", beyond, g.const([log_mel.HOP]))
        # An element past the end is never read as audio, whatever n is: Mod of a negative follows the divisor.
        pads = g.op("Concat", g.const([0, log_mel.HOP, 0]), after, axis=0)
        padded = g.op("Pad", audio, pads)
        return g.op("Reshape", padded, g.const([0, -1, log_mel.HOP]))

    def _fourier(self, turn: int) -> str:
        """Windowed cosines (480, 241), ``turn`` table steps later."""
        g = self.g
        samples = g.const(np.arange(log_mel.FRAME, dtype=np.int64)[:, None])
        bins = g.const(np.arange(log_mel.BINS, dtype=np.int64)[None])
        phase = g.op("Add", g.op("Mul", samples, bins), g.const([turn]))
        cosine = g.op("Gather", g.const(log_mel.cosine_table()), g.op("Mod", phase, g.const([log_mel.FRAME])))
        return g.op("Mul", cosine, g.const(log_mel.window()[:, None]))

    # layers

    def scores(self, features: str) -> str:
        """Features (b, 4t, mels) -> logits (b,t,v)."""
        g, s = self.g, self.shape
        x = self._silu(self.linear(self._halve(features), "front", 4 * s.mels, s.front_width))
        x = self.linear(self._halve(x), "middle", 4 * s.front_width, s.width)
        bias = self._distance_bias(x)
        for i in range(s.layers):
            with g.scope(f"L{i:02d}"):
                x = self._layer(x, bias, f"L{i:02d}")
        return self.linear(self.norm(x, "norm"), "head", s.width, s.vocab)

    def _layer(self, x: str, bias: str, name: str) -> str:
        g = self.g
        x = g.op("Add", x, self._half(x, f"{name}.first"))
        x = g.op("Add", x, self._attention(x, bias, f"{name}.attention"))
        x = g.op("Add", x, self._convolution(x, f"{name}.convolution"))
        return g.op("Add", x, self._half(x, f"{name}.second"))

    def _half(self, x: str, name: str) -> str:
        s = self.shape
        y = self._silu(self.linear(self.norm(x, f"{name}.norm"), f"{name}.up", s.width, s.ff_width))
        return self.g.op(
            "Mul", self.linear(y, f"{name}.down", s.ff_width, s.width), self.g.const(np.float32(0.5))
        )

    def _attention(self, x: str, bias: str, name: str) -> str:
        g, s = self.g, self.shape
        per_head = s.width // s.heads
        qkv = self.linear(self.norm(x, f"{name}.norm"), f"{name}.qkv", s.width, 3 * s.width)
        split = g.op("Reshape", qkv, g.const([0, 0, 3, s.heads, per_head]))
        q, k, v = (
            g.op("Squeeze", one, g.const([2]))
            for one in g.ops("Split", split, g.const([1, 1, 1]), axis=2, outputs=3)
        )
        q = g.op("Mul", g.op("Transpose", q, perm=[0, 2, 1, 3]), g.const(np.float32(per_head**-0.5)))
        scores = g.op("Add", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1])), bias)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.op("Transpose", v, perm=[0, 2, 1, 3]))
        joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.const([0, 0, s.width]))
        return self.linear(joined, f"{name}.out", s.width, s.width)

    def _distance_bias(self, x: str) -> str:
        """-(slope of the head) x (distance in tokens), (h,t,t)."""
        g = self.g
        t = g.op("Squeeze", g.op("Shape", x, start=1, end=2), g.const([0]))
        at = g.op("Cast", g.op("Range", g.const(np.int64(0)), t, g.const(np.int64(1))), to=FLOAT)
        distance = g.op("Abs", g.op("Sub", g.op("Unsqueeze", at, g.const([1])), at))
        return g.op("Mul", distance, g.const(-distance_slopes(self.shape.heads)[:, None, None]))

    def _convolution(self, x: str, name: str) -> str:
        g, s = self.g, self.shape
        y = self.linear(self.norm(x, f"{name}.norm"), f"{name}.gated", s.width, 2 * s.width)
        value, gate = g.ops("Split", y, g.const([s.width, s.width]), axis=-1, outputs=2)
        y = g.op("Transpose", g.op("Mul", value, g.op("Sigmoid", gate)), perm=[0, 2, 1])
        taps = self.g.weight(PART, f"{name}.depthwise.weight", (s.width, 1, s.kernel), self.stored)
        bias = self._vector(f"{name}.depthwise.bias")
        y = g.op("Conv", y, taps, bias, group=s.width, kernel_shape=[s.kernel], pads=[s.kernel // 2] * 2)
        y = self._silu(self.norm(g.op("Transpose", y, perm=[0, 2, 1]), f"{name}.inner_norm"))
        return self.linear(y, f"{name}.out", s.width, s.width)

    # parts

    def linear(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """(..., fan_in) -> (..., fan_out)."""
        weight = self.g.weight(PART, f"{name}.weight", (fan_in, fan_out), self.stored)
        return self.g.op(
            "Add", self.g.op("MatMul", x, weight), self.g.weight(PART, f"{name}.bias", (fan_out,))
        )

    def norm(self, x: str, name: str) -> str:
        """LayerNorm over d."""
        scale, shift = self._vector(f"{name}.weight"), self._vector(f"{name}.bias")
        return self.g.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=NORM_EPS)

    def _vector(self, name: str) -> str:
        """A (d) weight, always float32."""
        return self.g.weight(PART, name, (self.shape.width,))

    def _silu(self, x: str) -> str:
        return self.g.op("Mul", x, self.g.op("Sigmoid", x))

    def _halve(self, x: str) -> str:
        """(b, 2m, c) -> (b, m, 4c), as ``models.tokenizer.halve``."""
        g = self.g
        padded = g.op("Pad", x, g.const([0, 1, 0, 0, 1, 0]))
        views = [self._slice(padded, i, i - 2 if i < 2 else None, axis=1, step=2) for i in range(4)]
        return g.op("Concat", *views, axis=-1)

    def _slice(self, x: str, start: int, stop: int | None, axis: int, step: int = 1) -> str:
        g = self.g
        end = np.iinfo(np.int64).max if stop is None else stop
        return g.op("Slice", x, g.const([start]), g.const([end]), g.const([axis]), g.const([step]))


def _linear(out: dict[str, np.ndarray], name: str, layer: torch.nn.Linear) -> None:
    out[f"{name}.weight"] = np.ascontiguousarray(_array(layer.weight).T)
    out[f"{name}.bias"] = _array(layer.bias)


def _norm(out: dict[str, np.ndarray], name: str, layer: torch.nn.LayerNorm) -> None:
    out[f"{name}.weight"] = _array(layer.weight)
    out[f"{name}.bias"] = _array(layer.bias)


def _array(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().to(torch.float32).cpu().numpy()
    return array

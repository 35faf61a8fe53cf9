"""The acoustic graph: one masked-prediction pass of SoundStorm over a batch of windows.

========================  ======  ==================================================================
``tokens (b,t)``          int64   the speaker prompt's 75 tokens, then the window's
``codes (b,q,f)``         int64   f = 2t; read only where known
``known (b,q,f)``         bool    true throughout the prompt
``level ()``              int64   0 is the coarsest
``temperature ()``        float   of sampling; 0 takes the likeliest code
``noise (b,f)``           float   uniforms in [0,1), one per frame, for the inverse CDF
``codes_out (b,f)``       int64   the level's codes: the given one where known
``confidence (b,f)``      float   log-probability of that code at temperature 1; 0 in the prompt
========================  ======  ==================================================================

The confidence is of temperature 1 whatever the sampling temperature, so that a greedy pass still ranks its
frames. The Gumbel term that SoundStorm adds to it is the host's: it belongs to the schedule, and a schedule
must not need another export.

Window attention is blocked: queries in blocks of ``radius`` frames meet the keys of three blocks and of the
prompt, which costs 7.5 ms a layer where attention over the whole window costs 14 (1 650 frames, width 192,
one thread of a Zen 5 core, ONNX Runtime 1.32; the Attention operator: 13). ``recipes/acoustic/timing.py``
measures the graph. A row's result does not depend on its batch mates, bit for bit on ONNX Runtime CPU: a
product of two computed matrices is exact when its left one has two rows or more, and a block has ``radius``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from speechssm.axes import TOKEN_FRAMES
from speechssm.bundle.shapes import AcousticShape

from ..models.acoustic import Acoustic, PromptedLayer, rotary_angles
from .builder import BOOL, FLOAT, INT64, GraphBuilder
from .code_sampler import choose_code

PART = "acoustic"
"""The bundle part whose safetensors file holds the weights."""
NORM_EPS = 1e-5
FAR = np.float32(-1e9)
"""Added to the scores of keys out of reach; its exponential is 0 beside any score."""
END = np.iinfo(np.int64).max


def build_acoustic(shape: AcousticShape, stored: int = FLOAT, *, logits: bool = False) -> GraphBuilder:
    """The graph ``acoustic``; with ``logits`` a debug flavour that also gives ``logits (b, f - 150, c)``."""
    g = GraphBuilder("acoustic")
    nodes = _Nodes(g, shape, stored)
    tokens = g.input("tokens", INT64, ("b", "t"))
    codes = g.input("codes", INT64, ("b", shape.levels, "f"))
    known = g.input("known", BOOL, ("b", shape.levels, "f"))
    level = g.input("level", INT64, ())
    temperature = g.input("temperature", FLOAT, ())
    noise = g.input("noise", FLOAT, ("b", "f"))

    prompt = shape.prompt_frames
    x = nodes.embed(tokens, codes, known)
    keys, values, pooled = nodes.listen(nodes.cut(x, 0, prompt))
    scores = nodes.logits(nodes.hidden(nodes.cut(x, prompt), keys, values, pooled), level)

    given = g.op("Gather", codes, level, axis=1)
    fixed = nodes.cut(g.op("Gather", known, level, axis=1), prompt)
    uniform = nodes.cut(noise, prompt)
    chosen, confidence = choose_code(
        g, scores, shape.codes, temperature, uniform, nodes.cut(given, prompt), fixed
    )
    spoken = nodes.cut(given, 0, prompt)
    certain = g.op("Expand", g.const(np.float32(0)), g.op("Shape", spoken))
    g.output("codes_out", g.op("Concat", spoken, chosen, axis=1), INT64, ("b", "f"))
    g.output("confidence", g.op("Concat", certain, confidence, axis=1), FLOAT, ("b", "f"))
    if logits:
        g.output("logits", scores, FLOAT, ("b", "window", shape.codes))
    return g


def acoustic_weights(model: Acoustic) -> dict[str, np.ndarray]:
    """Float32 arrays by graph name; linear weights are (in, out), constant factors are multiplied in."""
    shape = model.shape
    out: dict[str, np.ndarray] = {}
    out["token_embedding"] = _array(model.token_embedding.weight)
    out["code_embedding"] = _array(model.code_embedding).reshape(-1, shape.code_width)
    _linear(out, "code_in", model.code_in)
    for i, layer in enumerate(model.layers):
        assert isinstance(layer, PromptedLayer)
        name = f"L{i:02d}"
        for half in ("first", "second"):
            module = getattr(layer, half)
            _norm(out, f"{name}.{half}.norm", module.norm)
            _linear(out, f"{name}.{half}.up", module.up)
            _linear(out, f"{name}.{half}.down", module.down, np.full(shape.width, 0.5))
        _norm(out, f"{name}.attention.norm", layer.attention.norm)
        scale = np.repeat([shape.head_dim**-0.5, 1.0, 1.0], shape.width)
        _linear(out, f"{name}.attention.qkv", layer.attention.qkv, scale)
        _linear(out, f"{name}.attention.out", layer.attention.out)
        _norm(out, f"{name}.convolution.norm", layer.convolution.norm)
        _linear(out, f"{name}.convolution.gated", layer.convolution.gated)
        out[f"{name}.convolution.depthwise.weight"] = _array(layer.convolution.depthwise.weight)
        assert layer.convolution.depthwise.bias is not None
        out[f"{name}.convolution.depthwise.bias"] = _array(layer.convolution.depthwise.bias)
        _norm(out, f"{name}.convolution.inner_norm", layer.convolution.inner_norm)
        _linear(out, f"{name}.convolution.out", layer.convolution.out)
    _norm(out, "voice.norm", model.voice.norm)
    _linear(out, "voice.up", model.voice.up)
    _linear(out, "voice.down", model.voice.down)
    _norm(out, "norm", model.norm)
    out["head"] = _array(model.head) * np.float32(shape.code_width**-0.5)
    out["head_bias"] = _array(model.head_bias)
    return out


@dataclass(frozen=True)
class _Nodes:
    """Emits the acoustic stage's nodes into ``g``."""

    g: GraphBuilder
    shape: AcousticShape
    stored: int

    def embed(self, tokens: str, codes: str, known: str) -> str:
        """tokens (b,t), codes and known (b,q,f) -> (b,f,d)."""
        g, s = self.g, self.shape
        with g.scope("embed"):
            row = g.op("Where", known, codes, g.const(np.int64(s.codes)))
            row = g.op("Add", row, g.const(np.arange(s.levels, dtype=np.int64)[:, None] * (s.codes + 1)))
            table = g.weight(PART, "code_embedding", (s.levels * (s.codes + 1), s.code_width), self.stored)
            code = g.op("Transpose", g.op("Gather", table, row, axis=0), perm=[0, 2, 1, 3])
            code = g.op("Reshape", code, g.const([0, 0, s.levels * s.code_width]))
            words = g.weight(PART, "token_embedding", (s.vocab, s.width), self.stored)
            token = g.op("Unsqueeze", g.op("Gather", words, tokens, axis=0), g.const([2]))
            token = g.op("Concat", *[token] * TOKEN_FRAMES, axis=2)
            token = g.op("Reshape", token, g.const([0, -1, s.width]))
            return g.op("Add", self.linear(code, "code_in", s.levels * s.code_width, s.width), token)

    def listen(self, x: str) -> tuple[list[str], list[str], str]:
        """Prompt (b,p,d) -> keys and values (b,p,h,k) of each layer, and the pooled voice (b,1,d)."""
        g, s = self.g, self.shape
        keys, values = [], []
        turn = self._turns(0, s.prompt_frames)
        with g.scope("prompt"):
            for i in range(s.layers):
                name = f"L{i:02d}"
                with g.scope(name):
                    x = g.op("Add", x, self.half(x, f"{name}.first"))
                    q, k, v = self.project(x, f"{name}.attention")
                    keys.append(k)
                    values.append(v)
                    scores = g.op(
                        "MatMul", self.by_head(self.rotate(q, turn)), self.by_head(self.rotate(k, turn), "T")
                    )
                    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), self.by_head(v))
                    x = g.op("Add", x, self.join(mixed, [0, 2, 1, 3], [0, 0, s.width], name))
                    x = self.after(x, name)
            # Not ReduceMean over the frames: its order of addition changes with b, and ONNX Runtime moves
            # a Transpose that would put the frames last through it.
            pooled = g.op("GlobalAveragePool", g.op("Transpose", x, perm=[0, 2, 1]))
            return (
                keys,
                values,
                self.feed_forward(g.op("Transpose", pooled, perm=[0, 2, 1]), "voice", s.width),
            )

    def hidden(self, x: str, keys: list[str], values: list[str], pooled: str) -> str:
        """Window (b,f,d) and what :meth:`listen` gave -> (b,f,d), normed."""
        g, s = self.g, self.shape
        with g.scope("window"):
            frames = g.op("Shape", x, start=1, end=2)
            turn = self._turns(0, frames)
            reach = None if s.radius is None else _Reach.of(self, frames, s.radius)
            x = g.op("Add", x, pooled)
            for i, (key, value) in enumerate(zip(keys, values, strict=True)):
                name = f"L{i:02d}"
                with g.scope(name):
                    x = g.op("Add", x, self.half(x, f"{name}.first"))
                    q, k, v = self.project(x, f"{name}.attention")
                    turned_q, turned_k = self.rotate(q, turn), self.rotate(k, turn)
                    if reach is None:
                        y = self._whole(q, turned_q, turned_k, v, key, value, name)
                    else:
                        y = self._blocked(q, turned_q, turned_k, v, key, value, name, reach)
                    x = self.after(g.op("Add", x, y), name)
            return self.norm(x, "norm")

    def logits(self, hidden: str, level: str) -> str:
        """(b,f,d) -> (b,f,c): the level's head and its code embeddings are gathered, no other level's."""
        g, s = self.g, self.shape
        with g.scope("head"):
            heads = g.weight(PART, "head", (s.levels, s.width, s.code_width), self.stored)
            bias = g.op("Gather", g.weight(PART, "head_bias", (s.levels, s.codes)), level, axis=0)
            table = g.weight(PART, "code_embedding", (s.levels * (s.codes + 1), s.code_width), self.stored)
            first = g.op("Mul", g.op("Unsqueeze", level, g.const([0])), g.const([s.codes + 1]))
            rows = g.op("Slice", table, first, g.op("Add", first, g.const([s.codes])), g.const([0]))
            narrow = g.op("MatMul", hidden, g.op("Gather", heads, level, axis=0))
            return g.op("Add", g.op("MatMul", narrow, g.op("Transpose", rows, perm=[1, 0])), bias)

    # attention

    def _whole(self, q: str, turned_q: str, turned_k: str, v: str, key: str, value: str, name: str) -> str:
        """Every window frame sees the whole window and the prompt: (b,f,d)."""
        g, s = self.g, self.shape
        told = g.op("MatMul", self.by_head(q), self.by_head(key, "T"))
        local = g.op("MatMul", self.by_head(turned_q), self.by_head(turned_k, "T"))
        weight = g.op("Softmax", g.op("Concat", told, local, axis=-1), axis=-1)
        mixed = g.op("MatMul", weight, self.by_head(g.op("Concat", value, v, axis=1)))
        return self.join(mixed, [0, 2, 1, 3], [0, 0, s.width], name)

    def _blocked(
        self, q: str, turned_q: str, turned_k: str, v: str, key: str, value: str, name: str, reach: _Reach
    ) -> str:
        """As :meth:`_whole` within ``radius`` frames: a block of queries against three of keys. (b,f,d)."""
        g, s = self.g, self.shape
        told_k = g.op("Unsqueeze", self.by_head(key, "T"), g.const([1]))
        told_v = g.op("Expand", g.op("Unsqueeze", value, g.const([1])), reach.repeat)
        told = g.op("MatMul", reach.queries(q), told_k)
        near_k = g.op("Transpose", g.op("Concat", *reach.three(turned_k), axis=2), perm=[0, 1, 3, 4, 2])
        local = g.op("Add", g.op("MatMul", reach.queries(turned_q), near_k), reach.mask)
        weight = g.op("Softmax", g.op("Concat", told, local, axis=-1), axis=-1)
        heard = g.op("Transpose", g.op("Concat", told_v, *reach.three(v), axis=2), perm=[0, 1, 3, 2, 4])
        y = self.join(g.op("MatMul", weight, heard), [0, 1, 3, 2, 4], [0, -1, s.width], name)
        return g.op("Slice", y, g.const([0]), reach.frames, g.const([1]))

    def project(self, x: str, name: str) -> tuple[str, str, str]:
        """(b,f,d) -> scaled queries, keys and values, each (b,f,h,k)."""
        g, s = self.g, self.shape
        qkv = self.linear(self.norm(x, f"{name}.norm"), f"{name}.qkv", s.width, 3 * s.width)
        heads = g.const([0, 0, s.heads, s.head_dim])
        split = g.ops("Split", qkv, g.const([s.width] * 3), axis=-1, outputs=3)
        q, k, v = (g.op("Reshape", one, heads) for one in split)
        return q, k, v

    def join(self, mixed: str, perm: list[int], shape: list[int], name: str) -> str:
        """Heads side by side again, then the output projection: (b,f,d)."""
        g, s = self.g, self.shape
        joined = g.op("Reshape", g.op("Transpose", mixed, perm=perm), g.const(shape))
        return self.linear(joined, f"{name}.attention.out", s.width, s.width)

    def by_head(self, x: str, order: str = "") -> str:
        """(b,f,h,k) -> (b,h,f,k), or (b,h,k,f) for ``T``."""
        return self.g.op("Transpose", x, perm=[0, 2, 3, 1] if order == "T" else [0, 2, 1, 3])

    def rotate(self, x: str, turn: tuple[str, str]) -> str:
        """Turn the two halves of each head, (b,f,h,k): x cos + swapped x sin, low half's sine negated."""
        g = self.g
        low, high = g.ops("Split", x, outputs=2, axis=-1, num_outputs=2)
        swapped = g.op("Concat", high, low, axis=-1)
        return g.op("Add", g.op("Mul", x, turn[0]), g.op("Mul", swapped, turn[1]))

    def _turns(self, start: int, stop: int | str) -> tuple[str, str]:
        """Cosines and signed sines (f,1,k) of the first ``stop`` positions."""
        g = self.g
        cosine, sine = rotary_angles(self.shape)[:, :, None]
        end = g.const([stop]) if isinstance(stop, int) else stop
        tables = (np.concatenate([cosine, cosine], -1), np.concatenate([-sine, sine], -1))
        first, second = (
            g.op("Slice", g.const(table), g.const([start]), end, g.const([0])) for table in tables
        )
        return first, second

    # the rest of a layer

    def after(self, x: str, name: str) -> str:
        """Convolution and the second half feed-forward."""
        g, s = self.g, self.shape
        full = f"{name}.convolution"
        y = self.linear(self.norm(x, f"{full}.norm"), f"{full}.gated", s.width, 2 * s.width)
        value, gate = g.ops("Split", y, g.const([s.width, s.width]), axis=-1, outputs=2)
        y = g.op("Transpose", g.op("Mul", value, g.op("Sigmoid", gate)), perm=[0, 2, 1])
        taps = g.weight(PART, f"{full}.depthwise.weight", (s.width, 1, s.kernel), self.stored)
        bias = g.weight(PART, f"{full}.depthwise.bias", (s.width,))
        y = g.op("Conv", y, taps, bias, group=s.width, kernel_shape=[s.kernel], pads=[s.kernel // 2] * 2)
        y = self.silu(self.norm(g.op("Transpose", y, perm=[0, 2, 1]), f"{full}.inner_norm"))
        x = g.op("Add", x, self.linear(y, f"{full}.out", s.width, s.width))
        return g.op("Add", x, self.half(x, f"{name}.second"))

    def half(self, x: str, name: str) -> str:
        """A half feed-forward; its 0.5 is in the weights."""
        return self.feed_forward(x, name, self.shape.ff_width)

    def feed_forward(self, x: str, name: str, hidden: int) -> str:
        """LayerNorm, (d, hidden), SiLU, (hidden, d)."""
        width = self.shape.width
        y = self.silu(self.linear(self.norm(x, f"{name}.norm"), f"{name}.up", width, hidden))
        return self.linear(y, f"{name}.down", hidden, width)

    def linear(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """(..., fan_in) -> (..., fan_out)."""
        weight = self.g.weight(PART, f"{name}.weight", (fan_in, fan_out), self.stored)
        return self.g.op(
            "Add", self.g.op("MatMul", x, weight), self.g.weight(PART, f"{name}.bias", (fan_out,))
        )

    def norm(self, x: str, name: str) -> str:
        """LayerNorm over d."""
        scale, shift = (
            self.g.weight(PART, f"{name}.{kind}", (self.shape.width,)) for kind in ("weight", "bias")
        )
        return self.g.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=NORM_EPS)

    def silu(self, x: str) -> str:
        """x sigmoid(x)."""
        return self.g.op("Mul", x, self.g.op("Sigmoid", x))

    def cut(self, x: str, start: int, stop: int = END) -> str:
        """Frames ``start`` to ``stop`` of (b,f,...)."""
        g = self.g
        return g.op("Slice", x, g.const([start]), g.const([stop]), g.const([1]))


@dataclass(frozen=True)
class _Reach:
    """Blocks of ``radius`` frames, N of them: shared by all layers of one graph.

    ``frames`` is [f]; ``repeat`` the shape that copies the prompt's values for each block; ``mask``
    (N,1,radius,3 radius) is 0 where a key is a frame of the window at most ``radius`` away, else FAR.
    """

    nodes: _Nodes
    frames: str
    radius: int
    pad_queries: str
    pad_keys: str
    repeat: str
    mask: str

    @staticmethod
    def of(nodes: _Nodes, frames: str, radius: int) -> _Reach:
        """From ``frames`` [f]; f need not be a multiple of the radius."""
        g = nodes.g
        size = g.const([radius])
        blocks = g.op("Div", g.op("Add", frames, g.const([radius - 1])), size)
        missing = g.op("Sub", g.op("Mul", blocks, size), frames)
        pad_queries = g.op("Concat", g.const([0] * 5), missing, g.const([0, 0]), axis=0)
        pad_keys = g.op(
            "Concat", g.const([0, radius, 0, 0, 0]), g.op("Add", missing, size), g.const([0, 0]), axis=0
        )

        first = g.op("Squeeze", blocks, g.const([0]))
        first = g.op("Range", g.const(np.int64(0)), first, g.const(np.int64(1)))
        starts = g.op("Unsqueeze", g.op("Mul", first, size), g.const([1]))
        key = g.op("Add", starts, g.const(np.arange(3 * radius) - radius))  # (N, 3 radius), frame of each key
        real = g.op("And", g.op("GreaterOrEqual", key, g.const(np.int64(0))), g.op("Less", key, frames))
        distance = np.arange(radius)[:, None] + radius - np.arange(3 * radius)
        near = g.op("And", g.op("Unsqueeze", real, g.const([1, 2])), g.const(np.abs(distance) <= radius))
        mask = g.op("Where", near, g.const(np.float32(0)), g.const(FAR))
        repeat = g.op("Concat", g.const([1]), blocks, g.const([1, 1, 1]), axis=0)
        return _Reach(nodes, frames, radius, pad_queries, pad_keys, repeat, mask)

    def queries(self, x: str) -> str:
        """(b,f,h,k) -> (b,N,h,radius,k)."""
        return self.nodes.g.op("Transpose", self._blocks(x, self.pad_queries), perm=[0, 1, 3, 2, 4])

    def three(self, x: str) -> list[str]:
        """(b,f,h,k) -> for each block the one before, itself and the one after, each (b,N,radius,h,k)."""
        blocks = self._blocks(x, self.pad_keys)
        return [self.nodes.cut(blocks, i, i - 2 if i < 2 else END) for i in range(3)]

    def _blocks(self, x: str, pads: str) -> str:
        g, s = self.nodes.g, self.nodes.shape
        return g.op("Reshape", g.op("Pad", x, pads), g.const([0, -1, self.radius, s.heads, s.head_dim]))


def _linear(
    out: dict[str, np.ndarray], name: str, layer: torch.nn.Linear, scale: np.ndarray | None = None
) -> None:
    factor = np.float32(1) if scale is None else scale.astype(np.float32)
    out[f"{name}.weight"] = np.ascontiguousarray(_array(layer.weight).T * factor)
    out[f"{name}.bias"] = _array(layer.bias) * factor


def _norm(out: dict[str, np.ndarray], name: str, layer: torch.nn.LayerNorm) -> None:
    out[f"{name}.weight"] = _array(layer.weight)
    out[f"{name}.bias"] = _array(layer.bias)


def _array(value: torch.Tensor) -> np.ndarray:
    array: np.ndarray = value.detach().to(torch.float32).cpu().numpy()
    return array

"""The acoustic graphs: what windows take from a speaker prompt, and one masked-prediction pass over windows.

``acoustic_prompt``, once for the windows of a call:

=========================  ======  =================================================================
``tokens (b,75)``          int64   the speaker prompt's
``codes (b,q,150)``        int64   all of them known
``keys (b,l,h,k,150)``     float   of each layer l, without positions
``values (b,l,h,150,k)``   float
``voice (b,d)``            float   the pooled voice
=========================  ======  =================================================================

``acoustic``, once a pass:

=========================  ======  =================================================================
``tokens (b,t)``           int64   the window's
``codes (b,q,f)``          int64   f = 2t; read only where known
``known (b,q,f)``          bool
``keys, values, voice``    float   as above
``level ()``               int64   0 is the coarsest
``temperature ()``         float   of sampling; 0 takes the likeliest code
``noise (b,f)``            float   uniforms in [0,1), one per frame, for the inverse CDF
``codes_out (b,f)``        int64   the level's codes: the given one where known
``confidence (b,f)``       float   log-probability of that code at temperature 1
=========================  ======  =================================================================

The confidence is of temperature 1 whatever the sampling temperature, so that a greedy pass still ranks its
frames. The Gumbel term that SoundStorm adds to it is the host's: it belongs to the schedule, and a schedule
must not need another export.

Window attention is blocked (:mod:`.window_attention`). ``recipes/acoustic/timing.py`` measures the graph. A row's
result does not depend on its batch mates, bit for bit on ONNX Runtime CPU: a product of two computed matrices
is exact when its left one has two rows or more, and a block has at least two.
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
from .window_attention import Reach

PART = "acoustic"
"""The bundle part whose safetensors file holds the weights."""
NORM_EPS = 1e-5


def build_acoustic_prompt(shape: AcousticShape, stored: int = FLOAT) -> GraphBuilder:
    """The graph ``acoustic_prompt``."""
    s = shape
    g = GraphBuilder("acoustic_prompt")
    nodes = _Nodes(g, s, stored)
    tokens = g.input("tokens", INT64, ("b", s.prompt_tokens))
    codes = g.input("codes", INT64, ("b", s.levels, s.prompt_frames))
    keys, values, voice = nodes.listen(nodes.embed(tokens, codes))
    g.output("keys", g.op("Concat", *keys, axis=1), FLOAT, _told_keys(s))
    g.output("values", g.op("Concat", *values, axis=1), FLOAT, _told_values(s))
    g.output("voice", voice, FLOAT, ("b", s.width))
    return g


def build_acoustic(shape: AcousticShape, stored: int = FLOAT, *, logits: bool = False) -> GraphBuilder:
    """The graph ``acoustic``; with ``logits`` a debug flavour that also gives ``logits (b,f,c)``."""
    g = GraphBuilder("acoustic")
    nodes = _Nodes(g, shape, stored)
    tokens = g.input("tokens", INT64, ("b", "t"))
    codes = g.input("codes", INT64, ("b", shape.levels, "f"))
    known = g.input("known", BOOL, ("b", shape.levels, "f"))
    keys = g.input("keys", FLOAT, _told_keys(shape))
    values = g.input("values", FLOAT, _told_values(shape))
    voice = g.input("voice", FLOAT, ("b", shape.width))
    level = g.input("level", INT64, ())
    temperature = g.input("temperature", FLOAT, ())
    noise = g.input("noise", FLOAT, ("b", "f"))

    scores = nodes.logits(nodes.hidden(nodes.embed(tokens, codes, known), keys, values, voice), level)
    given = g.op("Gather", codes, level, axis=1)
    fixed = g.op("Gather", known, level, axis=1)
    chosen, confidence = choose_code(g, scores, shape.codes, temperature, noise, given, fixed)
    g.output("codes_out", chosen, INT64, ("b", "f"))
    g.output("confidence", confidence, FLOAT, ("b", "f"))
    if logits:
        g.output("logits", scores, FLOAT, ("b", "f", shape.codes))
    return g


def _told_keys(s: AcousticShape) -> tuple[str | int, ...]:
    return ("b", s.layers, s.heads, s.head_dim, s.prompt_frames)


def _told_values(s: AcousticShape) -> tuple[str | int, ...]:
    return ("b", s.layers, s.heads, s.prompt_frames, s.head_dim)


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

    def embed(self, tokens: str, codes: str, known: str | None = None) -> str:
        """tokens (b,t), codes and known (b,q,f) -> (b,f,d); without ``known`` every code is."""
        g, s = self.g, self.shape
        with g.scope("embed"):
            row = codes if known is None else g.op("Where", known, codes, g.const(np.int64(s.codes)))
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
        """Prompt (b,p,d) -> keys (b,1,h,k,p) and values (b,1,h,p,k) of each layer, the pooled voice (b,d)."""
        g, s = self.g, self.shape
        keys, values = [], []
        turn = self._turns(x)
        one = g.const([1])
        for i in range(s.layers):
            name = f"L{i:02d}"
            with g.scope(name):
                x = g.op("Add", x, self.half(x, f"{name}.first"))
                q, k, v = self.project(x, f"{name}.attention")
                keys.append(g.op("Unsqueeze", self.flip(k), one))
                values.append(g.op("Unsqueeze", v, one))
                scores = g.op("MatMul", self.rotate(q, turn), self.flip(self.rotate(k, turn)))
                mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
                x = g.op("Add", x, self.join(mixed, name))
                x = self.after(x, name)
        # Not ReduceMean over the frames: its order of addition changes with b, and ONNX Runtime moves
        # a Transpose that would put the frames last through it.
        pooled = g.op("GlobalAveragePool", g.op("Transpose", x, perm=[0, 2, 1]))
        voice = self.feed_forward(g.op("Transpose", pooled, perm=[0, 2, 1]), "voice", s.width)
        return keys, values, g.op("Squeeze", voice, one)

    def hidden(self, x: str, keys: str, values: str, voice: str) -> str:
        """Window (b,f,d) and what :meth:`listen` gave, keys and values of all layers -> (b,f,d), normed."""
        g, s = self.g, self.shape
        with g.scope("window"):
            frames = g.op("Shape", x, start=1, end=2)
            turn = self._turns(x)
            reach = None if s.radius is None else Reach.of(g, s, frames, s.radius)
            x = g.op("Add", x, g.op("Unsqueeze", voice, g.const([1])))
            for i in range(s.layers):
                name = f"L{i:02d}"
                with g.scope(name):
                    told_k, told_v = (
                        g.op("Gather", of, g.const(np.int64(i)), axis=1) for of in (keys, values)
                    )
                    x = g.op("Add", x, self.half(x, f"{name}.first"))
                    q, k, v = self.project(x, f"{name}.attention")
                    turned_q, turned_k = self.rotate(q, turn), self.rotate(k, turn)
                    heard = g.op("Concat", told_v, v, axis=2)
                    attend = self._whole if reach is None else reach.attend
                    y = attend(q, turned_q, told_k, turned_k, heard)
                    x = self.after(g.op("Add", x, self.join(y, name)), name)
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

    def _whole(self, q: str, turned_q: str, told_k: str, turned_k: str, v: str) -> str:
        """Every window frame sees the prompt and the whole window.

        Queries and keys (b,h,f,k) plain and turned, the prompt's keys (b,h,k,p), values of prompt and window
        (b,h,p+f,k) -> (b,h,f,k).
        """
        g = self.g
        told, local = g.op("MatMul", q, told_k), g.op("MatMul", turned_q, self.flip(turned_k))
        return g.op("MatMul", g.op("Softmax", g.op("Concat", told, local, axis=-1), axis=-1), v)

    def project(self, x: str, name: str) -> tuple[str, str, str]:
        """(b,f,d) -> scaled queries, keys and values, each (b,h,f,k)."""
        g, s = self.g, self.shape
        qkv = self.linear(self.norm(x, f"{name}.norm"), f"{name}.qkv", s.width, 3 * s.width)
        heads = g.const([0, 0, s.heads, s.head_dim])
        split = g.ops("Split", qkv, g.const([s.width] * 3), axis=-1, outputs=3)
        q, k, v = (g.op("Transpose", g.op("Reshape", one, heads), perm=[0, 2, 1, 3]) for one in split)
        return q, k, v

    def join(self, mixed: str, name: str) -> str:
        """Heads (b,h,f,k) side by side again, then the output projection: (b,f,d)."""
        g, s = self.g, self.shape
        joined = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = g.op("Reshape", joined, g.const([0, 0, s.width]))
        return self.linear(joined, f"{name}.attention.out", s.width, s.width)

    def flip(self, x: str) -> str:
        """(b,h,f,k) -> (b,h,k,f)."""
        return self.g.op("Transpose", x, perm=[0, 1, 3, 2])

    def rotate(self, x: str, turn: tuple[str, str, str]) -> str:
        """Turn the two halves of each head, (b,h,f,k), by the angles of its position."""
        return self.g.op("RotaryEmbedding", x, *turn)

    def _turns(self, x: str) -> tuple[str, str, str]:
        """Cosines and sines (frames, k/2), and the position (b,f) of each frame of ``x`` (b,f,d)."""
        g = self.g
        cosine, sine = (g.const(table) for table in rotary_angles(self.shape))
        zero, step = g.const(np.int64(0)), g.const(np.int64(1))
        frames = g.op("Squeeze", g.op("Shape", x, start=1, end=2), g.const([0]))
        positions = g.op("Expand", g.op("Range", zero, frames, step), g.op("Shape", x, start=0, end=2))
        return cosine, sine, positions

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

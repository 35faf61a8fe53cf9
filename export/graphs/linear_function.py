"""Linear layers with what stands around them as operators of the domain ``speechssm``.

A step of a large model reads every matrix once, and between two matrices stand a dozen small nodes whose handing
over costs more than their work: norm, bias, activation, residual. Here a layer is one node. A graph that uses
them carries a function of each name, made of the nodes the plain graph has, so it runs in any ONNX runtime; where
``libspeechssm_ort`` is loaded, its kernel is used instead (cpp_ext/include/speechssm/linear_api.h).

    NormLinear           (x (r,i), norm (i), weight (o,i), bias (o))                                -> y (r,o)
    NormActivatedLinear  the same, with the shape's activation on y
    NormGatedLinear      (x (r,i), norm (i), weight, bias (o), times (o,i), times_bias (o))         -> y (r,o)
    AddLinear            (x (r,i), weight (o,i), bias (o), residual (r,o))                          -> y (r,o)

norm is 1 + scale of RMSNorm. The gated layer is act(n W^T + bias) (n U^T + times_bias), n being x normed. Matrices
lie output after output. They are float32, float16 or bfloat16; in the forms called ``...Blocks`` they are blocks of
128 inputs (:mod:`..quantize`), each followed by its scales. Where x is not finite, y of that row is not either.
Matrices must be constants of the graph: a kernel may keep a copy of its own.

With the library a row's bits depend on nothing but the row, so rows, chunks and steps agree bit for bit (S1, S3)
in every storage. Without it blocks are equal to rounding only, as :mod:`.quantized` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from onnx import FunctionProto, TensorProto

from speechssm.errors import ExportError

from ..lazy import LazyArrays
from ..quantize import BLOCK
from .builder import FLOAT, FLOAT16, GraphBuilder
from .griffin_nodes import PART, Nodes
from .quantized import ACCURACY_LEVEL, BLOCKS_INT4, BLOCKS_INT8, HEAD_BITS, bits_of, packed_blocks
from .recurrent_function import TAPS, block_gates
from .rglru_function import DOMAIN, declare

NORM = "NormLinear"
ACTIVATED = "NormActivatedLinear"
GATED = "NormGatedLinear"
ADD = "AddLinear"
ROWS = ".rows"
"""What the name of a float matrix ends in when it lies output after output."""
BFLOAT16 = int(TensorProto.BFLOAT16)
STORAGES = (FLOAT, FLOAT16, BFLOAT16, BLOCKS_INT8, BLOCKS_INT4)
_ACTIVATIONS = {"gelu_tanh": 1, "gelu": 2, "silu": 3}
_NODE_ATTRIBUTES = ("epsilon", "activation")
_BLOCK_ATTRIBUTES = {"K": "fan_in", "N": "fan_out", "bits": "bits"}


@dataclass(frozen=True)
class LinearOps(Nodes):
    """Nodes whose linear layers are operators; mixed into those of a storage by :func:`linear_nodes`."""

    linear_op: ClassVar[bool] = True
    normed: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Norms that wait for the layers that read them: name of the value -> what is normed, and the norm's weight."""
    zeros: dict[int, str] = field(default_factory=dict)
    """Biases of layers without one, by size."""

    def embed(self, tokens: str) -> str:
        """See :class:`Nodes`; a narrow table is gathered before it is widened, as the head reads it as it is."""
        narrow = self.stored in (FLOAT16, BFLOAT16)
        return self.embed_narrow(tokens, self.stored) if narrow else super().embed(tokens)

    def norm(self, x: str, name: str) -> str:
        """Nothing yet: the layers that read it norm for themselves."""
        later = f"{name}({x})"
        self.normed[later] = x, self.vector(name, self.shape.width)
        return later

    def unseen(self, x: str) -> list[str]:
        """None: what is not finite passes through these operators, whatever the storage."""
        return []

    def linear(self, x: str, name: str, fan_in: int, fan_out: int, *, bias: bool = True) -> str:
        """See :class:`Nodes`; x must be a norm."""
        return self._layer(NORM, x, name, fan_in, fan_out, bias=bias)

    def activated_linear(self, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """See :class:`Nodes`."""
        return self._layer(ACTIVATED, x, name, fan_in, fan_out)

    def add_linear(self, residual: str, x: str, name: str, fan_in: int, fan_out: int) -> str:
        """See :class:`Nodes`."""
        given = [x, *self._matrix(f"{name}.weight", fan_in, fan_out), self._bias(name, fan_out), residual]
        return self._node(ADD, given, fan_in, fan_out)

    def add_mlp(self, residual: str, x: str, name: str) -> str:
        """See :class:`Nodes`."""
        s = self.shape
        given = [*self.normed[x]]
        for part in ("gate", "up"):
            given += self._matrix(f"{name}.{part}.weight", s.width, s.mlp_width)
            given.append(self._bias(f"{name}.{part}", s.mlp_width))
        hidden = self._node(GATED, given, s.width, s.mlp_width)
        return self.add_linear(residual, hidden, f"{name}.down", s.mlp_width, s.width)

    def gates(self, u: str, name: str) -> tuple[str, str]:
        """See :class:`Nodes`."""
        return block_gates(self, u, name)

    def tap_weights(self, name: str) -> list[str]:
        """See :class:`Nodes`; they are stored in one."""
        g = self.g
        stacked = self.vector(f"{name}.conv.taps", TAPS, self.shape.lru_width)
        return [g.op("Gather", stacked, g.const(np.int64(j)), axis=0) for j in range(TAPS)]

    def unembed(self, x: str, value: str) -> str:
        """See :class:`Nodes`."""
        s = self.shape
        if self._blocks:
            head = [*packed_blocks(self.g, "head", s.width, s.vocab, HEAD_BITS)]
        else:
            stored = "embed" if s.tied_head else "head"
            head = [self.g.packed(PART, stored, (s.vocab, s.width), self.stored)]
        given = [*self.normed[x], *head, self._no_bias(s.vocab)]
        return self._node(NORM, given, s.width, s.vocab, bits=HEAD_BITS, value=value)

    def _layer(self, kind: str, x: str, name: str, fan_in: int, fan_out: int, *, bias: bool = True) -> str:
        given = [*self.normed[x], *self._matrix(f"{name}.weight", fan_in, fan_out)]
        given.append(self._bias(name, fan_out) if bias else self._no_bias(fan_out))
        return self._node(kind, given, fan_in, fan_out)

    @property
    def _blocks(self) -> bool:
        return self.stored in (BLOCKS_INT8, BLOCKS_INT4)

    def _matrix(self, name: str, fan_in: int, fan_out: int) -> list[str]:
        if self._blocks:
            return [*packed_blocks(self.g, name, fan_in, fan_out, bits_of(self.stored))]
        return [self.g.packed(PART, f"{name}{ROWS}", (fan_out, fan_in), self.stored)]

    def _bias(self, name: str, size: int) -> str:
        return self.vector(f"{name}.bias", size)

    def _no_bias(self, size: int) -> str:
        if size not in self.zeros:
            self.zeros[size] = self.g.op("ConstantOfShape", self.g.const([size]), name=f"no_bias_{size}")
        return self.zeros[size]

    def _node(
        self,
        kind: str,
        given: list[str],
        fan_in: int,
        fan_out: int,
        *,
        bits: int | None = None,
        value: str = "",
    ) -> str:
        g, name = self.g, f"{kind}Blocks" if self._blocks else kind
        declare(g, name, partial(_function, self, kind, name))
        active = kind in (ACTIVATED, GATED)
        more: dict[str, Any] = {
            "epsilon": float(self.shape.norm_eps),
            "activation": _ACTIVATIONS[self.shape.activation] if active else 0,
        }
        if self._blocks:
            g.custom_domains["com.microsoft"] = 1
            more |= {"fan_in": fan_in, "fan_out": fan_out, "bits": bits or bits_of(self.stored)}
        return g.op(name, *given, domain=DOMAIN, name=value, **more)


def linear_nodes(kind: type[Nodes], stored: int) -> type[Nodes]:
    """``kind`` with its linear layers as operators. Raises ExportError for a storage they do not read."""
    if stored not in STORAGES:
        raise ExportError(
            "the linear operators read float32, float16, bfloat16, int8 and int4 weights: export without them"
        )
    return type(f"Linear{kind.__name__}", (LinearOps, kind), {})


def rows_of(weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """``weights`` as these operators read them: float matrices (out, in), a block's gates and taps in one each."""
    makers: dict[str, Callable[[], np.ndarray]] = {}
    stacks: dict[str, list[str]] = {}
    for name in weights:
        stem, _, last = name.rpartition(".")
        if last == "weight":
            makers[f"{name}{ROWS}"] = partial(_turned, weights, name)
        elif last.isdigit():
            stacks.setdefault(stem, []).append(name)
        else:
            makers[name] = partial(weights.__getitem__, name)
    for stem, names in stacks.items():
        if stem.endswith(".conv"):
            makers[f"{stem}.taps"] = partial(_stacked, [partial(weights.__getitem__, n) for n in names])
        else:
            makers[f"{stem}{ROWS}"] = partial(_stacked, [partial(_turned, weights, n) for n in names])
    return LazyArrays(makers)


def _turned(weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return np.ascontiguousarray(weights[name].T)


def _stacked(parts: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    return np.stack([part() for part in parts])


def _function(n: LinearOps, kind: str, name: str) -> FunctionProto:
    """The body of one operator; sizes of blocks are attributes, since layers differ in them."""
    g = GraphBuilder(name)
    plain = Nodes(g, n.shape)
    blocks = n._blocks
    layers = [("weight", "bias"), *([("times", "times_bias")] if kind == GATED else [])]
    names = ["x", *(["norm"] if kind != ADD else [])]
    for matrix, bias in layers:
        names += [matrix, *([f"{matrix}_scale"] if blocks else []), bias]
    for value in [*names, *(["residual"] if kind == ADD else [])]:
        g.input(value, FLOAT, ())
    x = "x" if kind == ADD else plain.rms_norm("x", "norm")
    seen = g.op("Unsqueeze", plain.finite_zero(x), g.const([1])) if blocks else ""
    made = []
    for matrix, bias in layers:
        if blocks:
            g.custom_domains["com.microsoft"] = 1
            y = g.op(
                "MatMulNBits", x, matrix, f"{matrix}_scale", domain="com.microsoft", block_size=BLOCK,
                accuracy_level=ACCURACY_LEVEL, refers=_BLOCK_ATTRIBUTES,
            )  # fmt: skip
            y = g.op("Add", y, seen)  # cutting activations to integers hides a NaN
        else:
            y = g.op("Gemm", x, g.op("Cast", matrix, to=FLOAT), transB=1)
        made.append(g.op("Add", y, bias))
    y = made[0]
    if kind in (ACTIVATED, GATED):
        y = plain.activation(y)
    if kind == GATED:
        y = g.op("Mul", y, made[1])
    if kind == ADD:
        y = g.op("Add", "residual", y)
    g.output("y", y, FLOAT, ())
    return g.function(DOMAIN, [*_NODE_ATTRIBUTES, *(_BLOCK_ATTRIBUTES.values() if blocks else ())])


__all__ = ["LinearOps", "linear_nodes", "rows_of"]

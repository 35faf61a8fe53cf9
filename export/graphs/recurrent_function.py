"""What lies between the linear layers of a recurrent block as operators of the domain ``speechssm``.

    RecurrentStep (u, branch (b,e), conv (b,3,e), lru (b,e), taps (4,e), conv_bias (e), gates (h,2g,g),
                   gates_bias (h*2g), decay (e), position (b), active (b))
        -> y (b,e), largest (b), conv_out (b,3,e), lru_out (b,e)
    BlockGates    (x (r,e), gates (h,2g,g), gates_bias (h*2g)) -> gate_x, gate_a (r,e)

e is h*g. The step is the convolution of width 4, the block-diagonal gates, the recurrence and the product with the
other branch, some forty nodes in a plain graph. largest is that of |lru_out|, NaN where lru_out or u of an active
row is not finite, 0 for an inactive one. BlockGates is the part of it that a chunk needs on its own. Bodies are made
of the plain graph's nodes; kernels are in cpp_ext/ort/recurrent_ops.cpp. Equations: facts, paper section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from onnx import FunctionProto

from .builder import FLOAT, INT64, GraphBuilder
from .griffin_nodes import Nodes
from .rglru_function import DOMAIN, declare, rglru_step

STEP = "RecurrentStep"
GATES = "BlockGates"
TAPS = 4


def recurrent_step(
    n: Nodes, u: str, branch: str, conv: str, lru: str, name: str, position: str, active: str
) -> tuple[str, str, str, str]:
    """One token of block ``name``: shapes as above -> y, largest, conv_out, lru_out."""
    e = n.shape.lru_width
    taps = n.vector(f"{name}.conv.taps", TAPS, e)
    weights = [
        taps,
        n.vector(f"{name}.conv.bias", e),
        *_gates_weights(n, f"{name}.lru"),
        n.decay(f"{name}.lru"),
    ]
    declare(n.g, STEP, partial(_function, n, STEP, _step_body))
    y, largest, conv_out, lru_out = n.g.ops(
        STEP, u, branch, conv, lru, *weights, position, active, outputs=4, domain=DOMAIN
    )
    return y, largest, conv_out, lru_out


def block_gates(n: Nodes, x: str, name: str) -> tuple[str, str]:
    """Pre-activations of the input gate and of the recurrence gate of ``name`` from x, all (r,e)."""
    weights = _gates_weights(n, name)
    declare(n.g, GATES, partial(_function, n, GATES, _gates_body))
    gate_x, gate_a = n.g.ops(GATES, x, *weights, outputs=2, domain=DOMAIN)
    return gate_x, gate_a


def _gates_weights(n: Nodes, name: str) -> tuple[str, str]:
    s = n.shape
    gates = n.raw_matrix(f"{name}.gates.rows", s.heads, 2 * s.gate_width, s.gate_width)
    return gates, n.vector(f"{name}.gates.bias", 2 * s.lru_width)


def _function(n: Nodes, name: str, body: Callable[[Nodes], None]) -> FunctionProto:
    """The function ``name``. Those that its body calls are the model's: a function has none of its own."""
    inner = Nodes(GraphBuilder(name), n.shape)
    body(inner)
    for called in inner.g.functions:
        declare(n.g, called.name, partial(_same, called))
    inner.g.functions.clear()
    return inner.g.function(DOMAIN)


def _same(function: FunctionProto) -> FunctionProto:
    return function


def _step_body(n: Nodes) -> None:
    g = n.g
    for value in ("u", "branch", "conv", "lru", "taps", "conv_bias", "gates", "gates_bias", "decay"):
        g.input(value, FLOAT, ())
    g.input("position", INT64, ())
    g.input("active", FLOAT, ())
    zero, last = g.const(np.float32(0)), g.const([-1])
    first = g.op("Unsqueeze", g.op("Equal", "position", g.const(np.int64(0))), g.const([1, 2]))
    old = g.op("Where", first, zero, "conv")
    window = g.op("Concat", old, g.op("Unsqueeze", "u", g.const([1])), axis=1)
    numbers = [g.const(np.int64(j)) for j in range(TAPS)]
    inputs = [g.op("Gather", window, j, axis=1) for j in numbers]
    weights = [g.op("Gather", "taps", j, axis=0) for j in numbers]
    mixed = n.weighted(inputs, weights, "conv_bias")
    gates = _gate_nodes(n, mixed)
    h, state = rglru_step(g, mixed, *gates, "decay", "lru", "position", "active")
    tail = g.op("Slice", window, g.const([1]), g.const([TAPS]), g.const([1]))
    on = g.op("Unsqueeze", "active", g.const([1]))
    largest = g.op("ReduceMax", g.op("Abs", state), last, keepdims=0)
    largest = g.op("Sum", largest, n.finite_zero("u"), n.finite_zero(state))
    g.output("y", g.op("Mul", h, "branch"), FLOAT, ())
    g.output("largest", g.op("Where", "active", largest, zero), FLOAT, ())
    g.output("conv_out", g.op("Where", g.op("Unsqueeze", on, g.const([2])), tail, "conv"), FLOAT, ())
    g.output("lru_out", state, FLOAT, ())


def _gates_body(n: Nodes) -> None:
    for value in ("x", "gates", "gates_bias"):
        n.g.input(value, FLOAT, ())
    for name, gate in zip(("gate_x", "gate_a"), _gate_nodes(n, "x"), strict=True):
        n.g.output(name, gate, FLOAT, ())


def _gate_nodes(n: Nodes, x: str) -> tuple[str, str]:
    """As :meth:`Nodes.gates`, with the values ``gates`` and ``gates_bias``."""
    g, heads = n.g, n.shape.heads
    wide = g.op("Cast", "gates", to=FLOAT)
    blocks = [x] if heads == 1 else g.ops("Split", x, outputs=heads, axis=1, num_outputs=heads)
    mapped = [
        g.op("Gemm", block, g.op("Gather", wide, g.const(np.int64(j)), axis=0), transB=1)
        for j, block in enumerate(blocks)
    ]
    return n.gate_halves(mapped, "gates_bias")

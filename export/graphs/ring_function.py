"""Attention over the ring as operators of the domain ``speechssm``, each with a body of standard operators.

A graph that uses them carries the function of that name, made of the very nodes the plain graph has, so it
runs in any ONNX runtime and gives the same bits there; where ``libspeechssm_ort`` is loaded, its kernel is
used instead, which reads every key and value once. Equations: facts, paper section 2.4; the same in C++:
cpp_ext/include/speechssm/ring.hpp.

    RingAttend(q (b,h*k), k, v (b,g,1,k), key, value (b,w,g,k), position (b), active (b))
        -> y (b,h*k), check (b)
    RingScan(q (t,b,h*k), k, v (t,b,g,k), key, value (b,w,g,k), position (b), lengths (b))
        -> y (t,b,h*k), check (b), key_out, value_out

q is scaled and rotated, k rotated; position >= 0 is that of the first token. Rings are float32 or float16. An
int8 ring makes it RingAttendInt8 and RingScanInt8, whose last inputs, and last outputs of the scan, are
key_scale and value_scale (b,w,g). y of an inactive row and of padding is 0. check is 0, or NaN where a score,
key or value of an active row is not finite.

``RingAttend`` writes no ring: a step appends once it has its result, so one that fails has changed nothing
(:func:`.lm.build_lm_step`). ``RingScan`` attends and appends token after token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from onnx import FunctionProto

from speechssm.errors import ExportError

from .builder import BOOL, FLOAT, INT64, GraphBuilder
from .griffin_nodes import RING_TYPES, Nodes, Ring
from .rglru_function import DOMAIN, declare

ATTEND = "RingAttend"
SCAN = "RingScan"
WIDEST_HEAD = 512
"""Largest head dim of the kernels."""
_RING_INPUTS = ("key", "value", "position")
_SCALES = ("key_scale", "value_scale")


def ring_attend(
    n: Nodes, q: str, k: str, v: str, key: Ring, value: Ring, position: str, active: str
) -> tuple[str, str]:
    """One token: q (b,h*k), k and v (b,g,1,k), rings (b,w,g,k), position, active (b) -> y (b,h*k), check (b)."""
    name = _name(n, ATTEND)
    declare(n.g, name, partial(_function, n, name, _attend_body))
    given = (q, k, v, key[0], value[0], position, active, *key[1:], *value[1:])
    y, check = n.g.ops(name, *given, outputs=2, domain=DOMAIN)
    return y, check


def ring_scan(
    n: Nodes, q: str, k: str, v: str, key: Ring, value: Ring, position: str, lengths: str
) -> tuple[str, str, Ring, Ring]:
    """A chunk: q (t,b,h*k), k and v (t,b,g,k), rings (b,w,g,k), position, lengths (b) -> y, check, both rings."""
    name = _name(n, SCAN)
    declare(n.g, name, partial(_function, n, name, _scan_body))
    given = (q, k, v, key[0], value[0], position, lengths, *key[1:], *value[1:])
    y, check, *out = n.g.ops(name, *given, outputs=2 + 2 * len(key), domain=DOMAIN)
    return y, check, tuple(out[0::2]), tuple(out[1::2])


def scan_attention(
    n: Nodes, q: str, k: str, v: str, key: Ring, value: Ring, position: str, valid: str
) -> tuple[Ring, Ring, str]:
    """Attend, then write, over time: shapes as in :func:`ring_scan`, position and valid (t,b,1) -> rings, y."""
    g, s = n.g, n.shape
    slots = "s" if s.cache == "grow" else s.window
    kinds = [
        (RING_TYPES.get(s.ring, FLOAT), ("b", slots, s.kv_heads, s.head_dim)),
        (FLOAT, ("b", slots, s.kv_heads)),
    ]
    kinds = kinds[: len(key)]
    new = ("b", s.kv_heads, 1, s.head_dim)
    k5, v5 = (g.op("Unsqueeze", z, g.const([3])) for z in (k, v))
    with g.body("attention_over_time") as body:
        ring_k, ring_v = (
            tuple(g.input(f"{body.name}/{what}{i}", *kind) for i, kind in enumerate(kinds))
            for what in ("key", "value")
        )
        q_t = g.input(f"{body.name}/q", FLOAT, ("b", s.heads * s.head_dim))
        k_t = g.input(f"{body.name}/k", FLOAT, new)
        v_t = g.input(f"{body.name}/v", FLOAT, new)
        p_t = g.input(f"{body.name}/position", INT64, ("b", 1))
        ok_t = g.input(f"{body.name}/valid", BOOL, ("b", 1))
        y, _ = n.attend(q_t, k_t, v_t, ring_k, ring_v, p_t)
        for what, ring, fresh in (("key", ring_k, k_t), ("value", ring_v, v_t)):
            for i, written in enumerate(n.write_ring(ring, fresh, p_t, ok_t)):
                g.output(f"{body.name}/{what}_out{i}", written, *kinds[i])
        g.output(f"{body.name}/y", y, FLOAT, ("b", s.heads * s.head_dim))
    *rings, every = g.ops(
        "Scan", *key, *value, q, k5, v5, position, valid, outputs=2 * len(kinds) + 1,
        body=g.body_graph(body), num_scan_inputs=5,
    )  # fmt: skip
    return tuple(rings[: len(kinds)]), tuple(rings[len(kinds) :]), every


def _name(n: Nodes, kind: str) -> str:
    if n.shape.head_dim > WIDEST_HEAD:
        raise ExportError(
            f"the attention operator takes heads of at most {WIDEST_HEAD}, not {n.shape.head_dim}: export without it"
        )
    return f"{kind}Int8" if n.shape.ring == "int8" else kind


def _function(n: Nodes, name: str, body: Callable[[Nodes], None]) -> FunctionProto:
    """All attention layers of a model have one shape, so its sizes are constants of the function."""
    inner = replace(n, g=GraphBuilder(name), places={}, ring_op=False)
    body(inner)
    return inner.g.function(DOMAIN)


def _inputs(n: Nodes, rows: str) -> tuple[Ring, Ring]:
    """Declare a function's inputs, in order; ``rows`` is active or lengths. Types are dropped by the function."""
    names = ["q", "k", "v", *_RING_INPUTS, rows, *(_SCALES if n.shape.ring == "int8" else ())]
    for name in names:
        n.g.input(name, FLOAT, ())
    scaled = n.shape.ring == "int8"
    return ("key", "key_scale")[: 1 + scaled], ("value", "value_scale")[: 1 + scaled]


def _attend_body(n: Nodes) -> None:
    g, zero = n.g, n.g.const(np.float32(0))
    key, value = _inputs(n, "active")
    y, scores = n.attend("q", "k", "v", key, value, g.op("Unsqueeze", "position", g.const([1])))
    check = g.op("Sum", n.finite_zero(scores), n.finite_zero("k"), n.finite_zero("v"))
    g.output("y", g.op("Where", g.op("Unsqueeze", "active", g.const([1])), y, zero), FLOAT, ())
    g.output("check", g.op("Where", "active", check, zero), FLOAT, ())


def _scan_body(n: Nodes) -> None:
    g, zero, one = n.g, n.g.const(np.float32(0)), n.g.const([1])
    key, value = _inputs(n, "lengths")
    steps = g.op("Gather", g.op("Shape", "q"), g.const(np.int64(0)), axis=0)
    time = g.op("Unsqueeze", g.op("Range", g.const(np.int64(0)), steps, g.const(np.int64(1))), one)
    valid, position = (
        g.op("Unsqueeze", z, g.const([2]))
        for z in (g.op("Less", time, "lengths"), g.op("Add", time, "position"))
    )
    key, value, every = scan_attention(n, "q", "k", "v", key, value, position, valid)
    y = g.op("Where", valid, every, zero)
    seen = g.op("ReduceSum", g.op("Mul", y, zero), g.const([0, 2]), keepdims=0)
    check = g.op("Sum", seen, *n.ring_checks(key, value))
    used = g.op("Greater", "lengths", g.const(np.int64(0)))
    g.output("y", y, FLOAT, ())
    g.output("check", g.op("Where", used, check, zero), FLOAT, ())
    for i, suffix in enumerate(("", "_scale")[: len(key)]):
        for what, ring in (("key", key), ("value", value)):
            g.output(f"{what}{suffix}_out", ring[i], FLOAT, ())

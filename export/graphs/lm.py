"""The two graphs of the language model: ``lm_step`` (one token, sampled) and ``lm_chunk`` (prefill).

Both read and write the same state (:func:`speechssm.export.models.griffin.lm_state`). The chunk graph
keeps dense layers batched over t x b rows, time-major, and runs the attention as a Scan over tokens whose
body is the step graph's own nodes. The recurrence is one node of the domain ``speechssm``
(:mod:`.rglru_function`): a function of standard operators, or a kernel where a library brings one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from speechssm.bundle.shapes import LMShape

from ..models.griffin import CONV_WIDTH, lm_state
from .builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from .explicit import ObservingNodes
from .griffin_nodes import Nodes, Ring
from .rglru_function import rglru_scan, rglru_step
from .sampler import sample, sampler_inputs
from .transformer import nodes_of


def build_lm_step(shape: LMShape, stored: int = FLOAT, *, logits: bool = False) -> GraphBuilder:
    """Graph of one step.

    token (b), active (b), temperature, top_k, top_p, uniform (b) and the state -> token (b), logprob
    (b), health (b) and the state. Inactive rows keep their state bit for bit; their health is 0.
    health is the largest |lru| over the layers, NaN when a state or probability is not finite.
    ``logits`` adds the debug output logits (b,v).
    """
    return _build_step(nodes_of(GraphBuilder("lm_step"), shape, stored), logits=logits)


def build_observed_step(shape: LMShape) -> tuple[GraphBuilder, dict[str, str]]:
    """The float32 step graph that also gives the largest magnitude each product reads; outputs by weight name."""
    nodes = ObservingNodes(GraphBuilder("lm_step"), shape)
    return _build_step(nodes), nodes.report()


def _build_step(n: Nodes, *, logits: bool = False) -> GraphBuilder:
    g, shape = n.g, n.shape
    token = g.input("token", INT64, ("b",))
    active = g.input("active", BOOL, ("b",))
    given = sampler_inputs(g)
    state = _state_inputs(g, shape)
    position = state["position"]
    first = g.op("Unsqueeze", g.op("Equal", position, g.const(np.int64(0))), g.const([1]))
    column = g.op("Unsqueeze", position, g.const([1]))
    active_column = g.op("Unsqueeze", active, g.const([1]))
    rotation = n.rotation(position) if "attention" in shape.blocks else None
    new: dict[str, str] = {}
    checks: list[str] = []
    written: list[tuple[str, Ring, str]] = []
    x = n.embed(token)
    for i, block in enumerate(shape.blocks):
        name = f"L{i:02d}"
        with g.scope(name):
            y = n.norm(x, f"{name}.temporal_norm")
            if block == "recurrent":
                gate = n.activation(n.linear(y, f"{name}.linear_y", shape.width, shape.lru_width))
                u = n.linear(y, f"{name}.linear_x", shape.width, shape.lru_width)
                # A row at position 0 starts from nothing, whatever its slot holds.
                old_conv = _cleared(g, first, state[f"{name}_conv"], 3)
                taps = g.op("Concat", old_conv, g.op("Unsqueeze", u, g.const([1])), axis=1)
                split = [g.op("Gather", taps, g.const(np.int64(j)), axis=1) for j in range(CONV_WIDTH)]
                mixed = n.conv(split, name)
                gates, decay = n.gates(mixed, f"{name}.lru"), n.decay(f"{name}.lru")
                h, last = rglru_step(g, mixed, *gates, decay, state[f"{name}_lru"], position, active)
                tail = g.op("Slice", taps, g.const([1]), g.const([CONV_WIDTH]), g.const([1]))
                new[f"{name}_conv"] = n.keep(active, tail, state[f"{name}_conv"], 3)
                new[f"{name}_lru"] = last
                checks += [n.finite_zero(u), n.finite_zero(h)]
                y = n.linear(g.op("Mul", h, gate), f"{name}.linear_out", shape.lru_width, shape.width)
            else:
                q, k, v = n.qkv(y, name, rotation)
                key, value = _ring(state, f"{name}_key"), _ring(state, f"{name}_value")
                attended, scores = n.attend(q, k, v, key, value, column)
                y = n.linear(attended, f"{name}.out", shape.heads * shape.head_dim, shape.width)
                written += [(f"{name}_key", key, k), (f"{name}_value", value, v)]
                # The scores stand for the keys in the ring: an infinite key may get no weight and so stay
                # unseen in the output. An infinite value is always seen there.
                checks += [n.finite_zero(scores), n.finite_zero(k), n.finite_zero(v), *n.unseen(attended)]
            x = g.op("Add", x, y)
            x = g.op("Add", x, n.mlp(n.norm(x, f"{name}.channel_norm"), f"{name}.mlp"))
    normed = n.norm(x, "final_norm")
    checks += n.unseen(normed)
    logit = n.logits(normed)
    chosen, logprob, finite = sample(g, logit, shape.vocab, given)
    new["position"] = g.op("Add", position, g.op("Cast", active, to=INT64))
    if shape.cache == "grow":
        checks += n.overflow(state["L00_key"], new["position"])
    health = _health(g, shape, new, [*checks, finite])
    # Rings are written last, at slots that are known only once the step's result is: everything that reads
    # a ring has then run, so an engine may write it where it lies, and a step that fails has written none.
    # Health is never below zero, so what is added is zero; an engine cannot know that.
    late = g.op("Cast", g.op("Less", health, g.const(np.float32(0))), to=INT64)
    column = g.op("Add", column, g.op("Unsqueeze", late, g.const([1])))
    for name, ring, fresh in written:
        new |= _named(name, n.write_ring(ring, fresh, column, active_column))
    health = g.op("Where", active, health, g.const(np.float32(0)))
    g.output("token_out", chosen, INT64, ("b",))
    g.output("logprob", logprob, FLOAT, ("b",))
    g.output("health", health, FLOAT, ("b",))
    if logits:
        g.output("logits", logit, FLOAT, ("b", shape.vocab))
    _state_outputs(g, shape, new)
    return g


def build_lm_chunk(shape: LMShape, stored: int = FLOAT) -> GraphBuilder:
    """Graph of one prefill chunk, the exact flavour.

    tokens (b,t), lengths (b) and the state -> health (b) and the state. Only the first ``lengths[b]``
    tokens of a row count; the others may be anything. A row of length 0 keeps its state bit for bit.
    No token is sampled: the last prompt token goes through ``lm_step``.
    """
    g = GraphBuilder("lm_chunk")
    n = nodes_of(g, shape, stored)
    tokens = g.input("tokens", INT64, ("b", "t"))
    lengths = g.input("lengths", INT64, ("b",))
    state = _state_inputs(g, shape)
    position = state["position"]
    used = g.op("Greater", lengths, g.const(np.int64(0)))

    # Time-major rows (t*b): Scan inputs are then plain reshapes.
    major = g.op("Transpose", tokens, perm=[1, 0])
    steps = g.op("Gather", g.op("Shape", major), g.const([0]), axis=0)
    time = g.op("Range", g.const(np.int64(0)), g.op("Squeeze", steps), g.const(np.int64(1)))
    time = g.op("Unsqueeze", time, g.const([1]))
    valid = g.op("Less", time, lengths)
    positions = g.op("Add", time, position)
    in_range = g.op(
        "And",
        valid,
        g.op(
            "And",
            g.op("GreaterOrEqual", major, g.const(np.int64(0))),
            g.op("Less", major, g.const(np.int64(shape.vocab))),
        ),
    )
    # Padding may hold any number; an index outside the table would stop the run.
    major = g.op("Where", in_range, major, g.const(np.int64(0)))
    rows = g.op("Reshape", major, g.const([-1]))
    flat_position = g.op("Reshape", positions, g.const([-1]))
    starts = g.op("Unsqueeze", g.op("Equal", position, g.const(np.int64(0))), g.const([1]))
    valid_3d = g.op("Unsqueeze", valid, g.const([2]))
    positions_3d = g.op("Unsqueeze", positions, g.const([2]))
    rotation = n.rotation(flat_position) if "attention" in shape.blocks else None

    new: dict[str, str] = {}
    checks: list[str] = []
    x = n.embed(rows)
    for i, block in enumerate(shape.blocks):
        name = f"L{i:02d}"
        with g.scope(name):
            y = n.norm(x, f"{name}.temporal_norm")
            if block == "recurrent":
                e = shape.lru_width
                gate = n.activation(n.linear(y, f"{name}.linear_y", shape.width, e))
                u = n.linear(y, f"{name}.linear_x", shape.width, e)
                u3 = g.op("Reshape", u, _by_time(g, steps, e))
                old_conv = g.op("Transpose", _cleared(g, starts, state[f"{name}_conv"], 3), perm=[1, 0, 2])
                taps = g.op("Concat", old_conv, u3, axis=0)
                shifted = [_window(g, taps, j, steps) for j in range(CONV_WIDTH)]
                mixed = n.conv(shifted, name)
                gates = n.gates(g.op("Reshape", mixed, g.const([-1, e])), f"{name}.lru")
                gate_x, gate_a = (g.op("Reshape", z, _by_time(g, steps, e)) for z in gates)
                old_lru, decay = state[f"{name}_lru"], n.decay(f"{name}.lru")
                h3, last = rglru_scan(g, mixed, gate_x, gate_a, decay, old_lru, position, lengths)
                h = g.op("Reshape", h3, g.const([-1, e]))
                new[f"{name}_conv"] = n.keep(used, _last_taps(g, taps, lengths), state[f"{name}_conv"], 3)
                new[f"{name}_lru"] = last
                checks += [n.finite_zero(new[f"{name}_conv"]), n.finite_zero(last)]
                y = n.linear(g.op("Mul", h, gate), f"{name}.linear_out", e, shape.width)
            else:
                q, k, v = n.qkv(y, name, rotation)
                rings = _ring(state, f"{name}_key"), _ring(state, f"{name}_value")
                key, value, attended = _scan_attention(n, *rings, q, k, v, positions_3d, valid_3d, steps)
                new |= _named(f"{name}_key", key) | _named(f"{name}_value", value)
                flat = g.op("Reshape", attended, g.const([-1, shape.heads * shape.head_dim]))
                y = n.linear(flat, f"{name}.out", shape.heads * shape.head_dim, shape.width)
                checks += n.ring_checks(key, value)
            x = g.op("Add", x, y)
            x = g.op("Add", x, n.mlp(n.norm(x, f"{name}.channel_norm"), f"{name}.mlp"))
    new["position"] = g.op("Add", position, g.op("Max", lengths, g.const(np.int64(0))))
    if shape.cache == "grow":
        checks += n.overflow(state["L00_key"], new["position"])
    health = g.op("Where", used, _health(g, shape, new, checks), g.const(np.float32(0)))
    g.output("health", health, FLOAT, ("b",))
    _state_outputs(g, shape, new)
    return g


def _state_inputs(g: GraphBuilder, shape: LMShape) -> dict[str, str]:
    return {
        s.name: g.input(f"in_{s.name}", _TYPES[s.dtype], s.axes)
        for s in sorted(lm_state(shape), key=lambda s: s.name)
    }


_TYPES = {"float32": FLOAT, "float16": FLOAT16, "int64": INT64, "int8": int(TensorProto.INT8)}


def _ring(state: Mapping[str, str], name: str) -> Ring:
    """A ring's values in ``state``: the numbers, and the scale where there is one."""
    return tuple(state[n] for n in (name, f"{name}_scale") if n in state)


def _named(name: str, ring: Ring) -> dict[str, str]:
    """The opposite of :func:`_ring`."""
    return dict(zip((name, f"{name}_scale"), ring, strict=False))


def _state_outputs(g: GraphBuilder, shape: LMShape, new: dict[str, str]) -> None:
    for s in sorted(lm_state(shape), key=lambda s: s.name):
        g.output(f"out_{s.name}", new[s.name], _TYPES[s.dtype], s.axes)


def _cleared(g: GraphBuilder, first: str, value: str, rank: int) -> str:
    """Zero where ``first`` (b,1) holds; a Where, because zero times NaN is NaN (S4)."""
    mask = first if rank == 2 else g.op("Unsqueeze", first, g.const([2]))
    return g.op("Where", mask, g.const(np.float32(0)), value)


def _by_time(g: GraphBuilder, steps: str, *sizes: int) -> str:
    """The shape (t, b, *sizes) as a tensor."""
    return g.op("Concat", steps, g.const([-1, *sizes]), axis=0)


def _window(g: GraphBuilder, taps: str, start: int, steps: str) -> str:
    """t entries of (t+3,b,e) from ``start``."""
    stop = g.op("Add", steps, g.const([start]))
    return g.op("Slice", taps, g.const([start]), stop, g.const([0]))


def _last_taps(g: GraphBuilder, taps: str, lengths: str) -> str:
    """The three conv inputs before position ``lengths`` of each row: taps (t+3,b,e) -> (b,3,e)."""
    offsets = g.const(np.arange(CONV_WIDTH - 1, dtype=np.int64)[:, None])
    where = g.op("Add", offsets, lengths)
    batch_first = g.op("Transpose", taps, perm=[1, 0, 2])
    index = g.op("Unsqueeze", g.op("Transpose", where, perm=[1, 0]), g.const([2]))
    return g.op("GatherND", batch_first, index, batch_dims=1)


def _scan_attention(
    n: Nodes, key: Ring, value: Ring, q: str, k: str, v: str, position: str, valid: str, steps: str
) -> tuple[Ring, Ring, str]:
    """Attend, then write, over time; rings (b,w,g,k), q (r,h*k), k and v (r,g,1,k), position and valid (t,b,1)."""
    g, s = n.g, n.shape
    width = s.heads * s.head_dim
    slots = "s" if s.cache == "grow" else s.window
    kinds = [(_TYPES[s.ring], ("b", slots, s.kv_heads, s.head_dim)), (FLOAT, ("b", slots, s.kv_heads))]
    kinds = kinds[: len(key)]
    new = ("b", s.kv_heads, 1, s.head_dim)
    q3 = g.op("Reshape", q, _by_time(g, steps, width))
    k5, v5 = (g.op("Reshape", z, _by_time(g, steps, s.kv_heads, 1, s.head_dim)) for z in (k, v))
    with g.body("attention_over_time") as body:
        ring_k, ring_v = (
            tuple(g.input(f"{body.name}/{what}{i}", *kind) for i, kind in enumerate(kinds))
            for what in ("key", "value")
        )
        q_t = g.input(f"{body.name}/q", FLOAT, ("b", width))
        k_t = g.input(f"{body.name}/k", FLOAT, new)
        v_t = g.input(f"{body.name}/v", FLOAT, new)
        p_t = g.input(f"{body.name}/position", INT64, ("b", 1))
        ok_t = g.input(f"{body.name}/valid", BOOL, ("b", 1))
        y, _ = n.attend(q_t, k_t, v_t, ring_k, ring_v, p_t)
        for what, ring, fresh in (("key", ring_k, k_t), ("value", ring_v, v_t)):
            for i, written in enumerate(n.write_ring(ring, fresh, p_t, ok_t)):
                g.output(f"{body.name}/{what}_out{i}", written, *kinds[i])
        g.output(f"{body.name}/y", y, FLOAT, ("b", width))
    *rings, every = g.ops(
        "Scan", *key, *value, q3, k5, v5, position, valid, outputs=2 * len(kinds) + 1,
        body=g.body_graph(body), num_scan_inputs=5,
    )  # fmt: skip
    return tuple(rings[: len(kinds)]), tuple(rings[len(kinds) :]), every


def _health(g: GraphBuilder, shape: LMShape, new: dict[str, str], checks: list[str]) -> str:
    """Largest |lru| of each row over the layers, plus the checks (0 or NaN)."""
    norms = [
        g.op("ReduceMax", g.op("Abs", new[s.name]), g.const([1]), keepdims=0)
        for s in lm_state(shape)
        if s.kind == "lru"
    ]
    health = g.op("Max", *norms) if len(norms) > 1 else (norms or [g.const(np.float32(0))])[0]
    return g.op("Add", health, g.op("Sum", *checks))

"""The two graphs of the language model: ``lm_step`` (one token, sampled) and ``lm_chunk`` (prefill).

Both read and write the same state (:func:`speechssm.export.models.griffin.lm_state`). The chunk graph
keeps dense layers batched over t x b rows, time-major, and runs the attention as a Scan over tokens whose
body is the step graph's own nodes. The recurrence is one node of the domain ``speechssm``
(:mod:`.rglru_function`): a function of standard operators, or a kernel where a library brings one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from speechssm.bundle.shapes import LMShape

from ..models.griffin import CONV_WIDTH, lm_state
from .builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from .explicit import ObservingNodes
from .griffin_nodes import Nodes, Ring
from .recurrent_function import recurrent_step
from .rglru_function import rglru_scan, rglru_step
from .ring_function import ring_attend, ring_scan, scan_attention
from .sample_function import sample_token
from .sampler import sample, sampler_inputs
from .transformer import nodes_of
from .write_function import has_write, write_rings


def build_lm_step(
    shape: LMShape,
    stored: int = FLOAT,
    *,
    logits: bool = False,
    ring_op: bool = False,
    linear_op: bool = False,
) -> GraphBuilder:
    """Graph of one step.

    token (b), active (b), temperature, top_k, top_p, uniform (b) and the state -> token (b), logprob
    (b), health (b) and the state. Inactive rows keep their state bit for bit; their health is 0.
    health is the largest |lru| over the layers, NaN when a state or probability is not finite.
    ``logits`` adds the debug output logits (b,v). ``ring_op`` makes the attention of each layer one node
    (:mod:`.ring_function`), a kernel where a library brings one; ``linear_op`` does so with each linear layer
    (:mod:`.linear_function`), whose float matrices then lie output after output, and with the sampler.
    """
    nodes = nodes_of(GraphBuilder("lm_step"), shape, stored, ring_op=ring_op, linear_op=linear_op)
    return _build_step(nodes, logits=logits)


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
    largest: list[str] = []
    written: list[tuple[str, tuple[Ring, Ring], tuple[str, str]]] = []
    x = n.embed(token)
    for i, block in enumerate(shape.blocks):
        name = f"L{i:02d}"
        with g.scope(name):
            y = n.norm(x, f"{name}.temporal_norm")
            if block == "recurrent":
                gate = n.activated_linear(y, f"{name}.linear_y", shape.width, shape.lru_width)
                u = n.linear(y, f"{name}.linear_x", shape.width, shape.lru_width)
                conv, lru = state[f"{name}_conv"], state[f"{name}_lru"]
                if n.linear_op:
                    made = recurrent_step(n, u, gate, conv, lru, name, position, active)
                    gated, most, new[f"{name}_conv"], new[f"{name}_lru"] = made
                    largest.append(most)
                else:
                    # A row at position 0 starts from nothing, whatever its slot holds.
                    taps = g.op(
                        "Concat", _cleared(g, first, conv, 3), g.op("Unsqueeze", u, g.const([1])), axis=1
                    )
                    split = [g.op("Gather", taps, g.const(np.int64(j)), axis=1) for j in range(CONV_WIDTH)]
                    mixed = n.conv(split, name)
                    gates, decay = n.gates(mixed, f"{name}.lru"), n.decay(f"{name}.lru")
                    h, new[f"{name}_lru"] = rglru_step(g, mixed, *gates, decay, lru, position, active)
                    tail = g.op("Slice", taps, g.const([1]), g.const([CONV_WIDTH]), g.const([1]))
                    new[f"{name}_conv"] = n.keep(active, tail, conv, 3)
                    checks += [n.finite_zero(u), n.finite_zero(h)]
                    gated = g.op("Mul", h, gate)
                x = n.add_linear(x, gated, f"{name}.linear_out", shape.lru_width, shape.width)
            else:
                q, k, v = n.qkv(y, name, rotation)
                key, value = _ring(state, f"{name}_key"), _ring(state, f"{name}_value")
                if n.ring_op:
                    attended, seen = ring_attend(n, q, k, v, key, value, position, active)
                else:
                    attended, scores = n.attend(q, k, v, key, value, column)
                x = n.add_linear(x, attended, f"{name}.out", shape.heads * shape.head_dim, shape.width)
                written.append((name, (key, value), (k, v)))
                # The scores stand for the keys in the ring: an infinite key may get no weight and so stay
                # unseen in the output. An infinite value is always seen there.
                checks += [seen] if n.ring_op else [n.finite_zero(scores), n.finite_zero(k), n.finite_zero(v)]
                checks += n.unseen(attended)
            x = n.add_mlp(x, n.norm(x, f"{name}.channel_norm"), f"{name}.mlp")
    normed = n.norm(x, "final_norm")
    checks += n.unseen(normed)
    logit = n.logits(normed)
    draw = sample_token if n.linear_op else sample
    chosen, logprob, finite = draw(g, logit, shape.vocab, given)
    new["position"] = g.op("Add", position, g.op("Cast", active, to=INT64))
    if shape.cache == "grow":
        checks += n.overflow(state["L00_key"], new["position"])
    health = _health(g, shape, new, [*checks, finite], largest)
    # Rings are written last, at slots that are known only once the step's result is: everything that reads
    # a ring has then run, so an engine may write it where it lies, and a step that fails has written none.
    # Health is never below zero, so what is added is zero; an engine cannot know that.
    late = g.op("Cast", g.op("Less", health, g.const(np.float32(0))), to=INT64)
    column = g.op("Add", column, g.op("Unsqueeze", late, g.const([1])))
    for name, (key, value), (k, v) in written:
        if n.linear_op and has_write(n):
            key, value = write_rings(n, (key, value), (k, v), column, active_column)
        else:
            key, value = (n.write_ring(*pair, column, active_column) for pair in ((key, k), (value, v)))
        new |= _named(f"{name}_key", key) | _named(f"{name}_value", value)
    health = g.op("Where", active, health, g.const(np.float32(0)))
    g.output("token_out", chosen, INT64, ("b",))
    g.output("logprob", logprob, FLOAT, ("b",))
    g.output("health", health, FLOAT, ("b",))
    if logits:
        g.output("logits", logit, FLOAT, ("b", shape.vocab))
    _state_outputs(g, shape, new)
    return g


def build_lm_chunk(
    shape: LMShape, stored: int = FLOAT, *, ring_op: bool = False, linear_op: bool = False
) -> GraphBuilder:
    """Graph of one prefill chunk, the exact flavour.

    tokens (b,t), lengths (b) and the state -> health (b) and the state. Only the first ``lengths[b]``
    tokens of a row count; the others may be anything. A row of length 0 keeps its state bit for bit.
    No token is sampled: the last prompt token goes through ``lm_step``. ``ring_op`` and ``linear_op`` as in the
    step graph.
    """
    g = GraphBuilder("lm_chunk")
    n = nodes_of(g, shape, stored, ring_op=ring_op, linear_op=linear_op)
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
                gate = n.activated_linear(y, f"{name}.linear_y", shape.width, e)
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
                x = n.add_linear(x, g.op("Mul", h, gate), f"{name}.linear_out", e, shape.width)
            else:
                q, k, v = n.qkv(y, name, rotation)
                rings = _ring(state, f"{name}_key"), _ring(state, f"{name}_value")
                q3 = g.op("Reshape", q, _by_time(g, steps, shape.heads * shape.head_dim))
                heads = (shape.kv_heads, shape.head_dim)
                k4, v4 = (g.op("Reshape", z, _by_time(g, steps, *heads)) for z in (k, v))
                if n.ring_op:
                    attended, seen, key, value = ring_scan(n, q3, k4, v4, *rings, position, lengths)
                else:
                    key, value, attended = scan_attention(n, q3, k4, v4, *rings, positions_3d, valid_3d)
                new |= _named(f"{name}_key", key) | _named(f"{name}_value", value)
                flat = g.op("Reshape", attended, g.const([-1, shape.heads * shape.head_dim]))
                x = n.add_linear(x, flat, f"{name}.out", shape.heads * shape.head_dim, shape.width)
                checks += [seen] if n.ring_op else n.ring_checks(key, value)
            x = n.add_mlp(x, n.norm(x, f"{name}.channel_norm"), f"{name}.mlp")
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


def _health(
    g: GraphBuilder, shape: LMShape, new: dict[str, str], checks: list[str], largest: Sequence[str] = ()
) -> str:
    """Largest |lru| of each row over the layers, plus the checks (0 or NaN); ``largest`` where it is known already."""
    norms = list(largest) or [
        g.op("ReduceMax", g.op("Abs", new[s.name]), g.const([1]), keepdims=0)
        for s in lm_state(shape)
        if s.kind == "lru"
    ]
    health = g.op("Max", *norms) if len(norms) > 1 else (norms or [g.const(np.float32(0))])[0]
    return g.op("Add", health, g.op("Sum", *checks))

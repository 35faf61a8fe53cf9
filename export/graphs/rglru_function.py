"""RG-LRU as two operators of the domain ``speechssm``, each with a body of standard operators.

A graph that uses :data:`STEP` or :data:`SCAN` carries the function of that name, so it runs in any
ONNX runtime; where ``libspeechssm_ort`` or the TensorRT plugin is loaded, its kernel is used instead.
Equations: facts, paper section 2.3; the same in C++: cpp_ext/include/speechssm/rglru_core.hpp.

    RGLRUStep(x, gate_x, gate_a (b,e), decay (e), state (b,e), position (b), active (b))
    RGLRUScan(x, gate_x, gate_a (t,b,e), decay (e), state (b,e), position (b), lengths (b))
        -> y like x, state_out (b,e) float32

The gates are pre-activations, ``decay`` is -8 softplus(Lambda) folded at export. position >= 0 is that
of the first token; where it is 0, that token is a reset row: a = 0, factor 1, the old state ignored even
when it is NaN. An inactive row, and a token at or past lengths[b], changes no state and has y = 0. t is
at least 1. x, gates and y may be float32, float16 or bfloat16; everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import FunctionProto

from .builder import OPSET, GraphBuilder

DOMAIN = "speechssm"
DOMAIN_VERSION = 1
STEP = "RGLRUStep"
SCAN = "RGLRUScan"

# With T = tanh(log(a) / 2) and q = 2 / (1 - T): a - 1 = q T and sqrt(1 - a^2) = q sqrt(-T), both exact to a
# few roundings however near a is to 1. The sigmoids are spelled out because the Sigmoid kernel's error is
# absolute, and a closed recurrence gate (r of 1e-4) needs a relative one.
_COEFFICIENTS = """
    one = Constant <value_float = 1.0> ()
    two = Constant <value_float = 2.0> ()
    half = Constant <value_float = 0.5> ()
    zero = Constant <value_float = 0.0> ()
    x32 = Cast <to = 1> (x)
    gx32 = Cast <to = 1> (gate_x)
    ga32 = Cast <to = 1> (gate_a)
    gx_minus = Neg (gx32)
    gx_exp = Exp (gx_minus)
    gx_sum = Add (gx_exp, one)
    drive = Div (x32, gx_sum)
    ga_minus = Neg (ga32)
    ga_exp = Exp (ga_minus)
    ga_sum = Add (ga_exp, one)
    log_a = Div (decay, ga_sum)
    log_a_half = Mul (log_a, half)
    tanh = Tanh (log_a_half)
    tanh_rest = Sub (one, tanh)
    q = Div (two, tanh_rest)
    m = Mul (q, tanh)
    tanh_minus = Neg (tanh)
    root = Sqrt (tanh_minus)
    factor = Mul (q, root)
    b = Mul (factor, drive)
"""

# h + (m h + b): the same three operators in both functions, so that a chunk equals its tokens one by one.
_ADVANCE = """
    m_h = Mul ({m}, {h})
    change = Add (m_h, {b})
    {new} = Add ({h}, change)
"""

_STEP = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{STEP} (x, gate_x, gate_a, decay, state, position, active) => (y, state_out)
{{
    {_COEFFICIENTS}
    column = Constant <value_ints = [1]> ()
    origin = Constant <value_int = 0> ()
    at_origin = Equal (position, origin)
    first = Unsqueeze (at_origin, column)
    on = Unsqueeze (active, column)
    {_ADVANCE.format(m="m", h="state", b="b", new="kept")}
    moved = Where (first, drive, kept)
    state_out = Where (on, moved, state)
    y32 = Where (on, moved, zero)
    y = CastLike (y32, x)
}}
"""

# The loop carries no mask: a reset row starts from a zero state, and a row's state is picked out of the
# whole run at its length. What padding does after that reaches nothing but the padding.
_SCAN = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{SCAN} (x, gate_x, gate_a, decay, state, position, lengths) => (y, state_out)
{{
    {_COEFFICIENTS}
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    axis2 = Constant <value_ints = [2]> ()
    far = Constant <value_ints = [9223372036854775807]> ()
    none = Constant <value_int = 0> ()
    unit = Constant <value_int = 1> ()

    at_origin = Equal (position, none)
    first = Unsqueeze (at_origin, axis1)
    start = Where (first, zero, state)
    b_first_only = Slice (b, axis0, axis1, axis0)
    b_rest = Slice (b, axis1, far, axis0)
    drive_first_only = Slice (drive, axis0, axis1, axis0)
    b_start = Where (first, drive_first_only, b_first_only)
    b_all = Concat <axis = 0> (b_start, b_rest)
    _final, every = Scan <
        num_scan_inputs = 2,
        body = over_time (float[rows, e] h, float[rows, e] m_t, float[rows, e] b_t)
               => (float[rows, e] h_out, float[rows, e] y_t)
        {{
            {_ADVANCE.format(m="m_t", h="h", b="b_t", new="h_out")}
            y_t = Identity (h_out)
        }}
    > (start, m, b_all)

    shape = Shape (x)
    tokens = Gather (shape, none)
    rows = Gather (shape, unit)
    used = Min (lengths, tokens)
    before_end = Sub (used, unit)
    last_token = Max (before_end, none)
    row_index = Range (none, rows, unit)
    last_column = Unsqueeze (last_token, axis1)
    row_column = Unsqueeze (row_index, axis1)
    where_last = Concat <axis = 1> (last_column, row_column)
    last_state = GatherND (every, where_last)
    any_used = Greater (used, none)
    any_column = Unsqueeze (any_used, axis1)
    state_out = Where (any_column, last_state, state)

    index_1d = Range (none, tokens, unit)
    index = Unsqueeze (index_1d, axis1)
    lengths_row = Unsqueeze (lengths, axis0)
    in_row = Less (index, lengths_row)
    on = Unsqueeze (in_row, axis2)
    y32 = Where (on, every, zero)
    y = CastLike (y32, x)
}}
"""


def step_function() -> FunctionProto:
    """The body of :data:`STEP`: one token for each row."""
    return onnx.parser.parse_function(_STEP)


def scan_function() -> FunctionProto:
    """The body of :data:`SCAN`: t tokens for each row, an ONNX Scan inside."""
    return onnx.parser.parse_function(_SCAN)


def declare(g: GraphBuilder, name: str, function: Callable[[], FunctionProto]) -> None:
    """Declare the domain in ``g`` and give it the function ``name``, made when the graph has none yet."""
    g.custom_domains[DOMAIN] = DOMAIN_VERSION
    if name not in {f.name for f in g.functions if f.domain == DOMAIN}:
        g.functions.append(function())


def rglru_step(
    g: GraphBuilder, x: str, gate_x: str, gate_a: str, decay: str, state: str, position: str, active: str
) -> tuple[str, str]:
    """One token: x, gates and state (b,e), decay (e), position (b) int64, active (b) bool -> y, state."""
    declare(g, STEP, step_function)
    y, out = g.ops(STEP, x, gate_x, gate_a, decay, state, position, active, outputs=2, domain=DOMAIN)
    return y, out


def rglru_scan(
    g: GraphBuilder, x: str, gate_x: str, gate_a: str, decay: str, state: str, position: str, lengths: str
) -> tuple[str, str]:
    """A chunk: x and gates (t,b,e), decay (e), state (b,e), position, lengths (b) int64 -> y, state."""
    declare(g, SCAN, scan_function)
    y, out = g.ops(SCAN, x, gate_x, gate_a, decay, state, position, lengths, outputs=2, domain=DOMAIN)
    return y, out

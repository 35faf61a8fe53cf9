"""The append to a layer's rings as an operator of the domain ``speechssm``, with a body of standard operators.

    RingWrite(key, value (b,w,g,k), k, v (b,g,1,k), position (b,1), active (b,1)) -> key_out, value_out

The slot ``position`` mod w of an active row takes k and v, all else stays. The body is the plain graph's nodes; the
kernel (cpp_ext/ort/write_ops.cpp) is one node to a layer, and like them writes where a ring lies when its output
is bound to its input. Rings are float32 or float16, of w slots.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from onnx import FunctionProto

from .builder import BOOL, FLOAT, INT64, GraphBuilder
from .griffin_nodes import Nodes, Ring
from .rglru_function import DOMAIN, declare

WRITE = "RingWrite"


def has_write(n: Nodes) -> bool:
    """True for rings that the operator takes."""
    return n.shape.ring != "int8" and n.shape.cache != "grow"


def write_rings(
    n: Nodes, rings: tuple[Ring, Ring], fresh: tuple[str, str], position: str, active: str
) -> tuple[Ring, Ring]:
    """Key and value ring of a layer with k and v appended; shapes as above."""
    declare(n.g, WRITE, partial(_function, n))
    key, value = n.g.ops(WRITE, rings[0][0], rings[1][0], *fresh, position, active, outputs=2, domain=DOMAIN)
    return (key,), (value,)


def _function(n: Nodes) -> FunctionProto:
    inner = replace(n, g=GraphBuilder(WRITE), places={}, ring_op=False)
    g = inner.g
    for name in ("key", "value", "k", "v"):
        g.input(name, FLOAT, ())
    g.input("position", INT64, ())
    g.input("active", BOOL, ())
    for ring, new in (("key", "k"), ("value", "v")):
        (out,) = inner.write_ring((ring,), new, "position", "active")
        g.output(f"{ring}_out", out, FLOAT, ())
    return g.function(DOMAIN)

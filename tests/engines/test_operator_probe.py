"""The operators the graphs are made of give the same bits for any number of rows (anchors D.5).

S1-S6 hold bit for bit on ONNX Runtime CPU only while this holds; look here first after every upgrade.
Each known offender is kept as a test that it still offends, so that a workaround can go when its reason
does; they are also the control that shows the probe can fail.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from speechssm.export.graphs.builder import FLOAT, GraphBuilder
from speechssm.export.graphs.exact import row_log, row_mean, row_sum

Emit = Callable[[GraphBuilder, str, int], str]
ROWS = 61
THREADS = [1, 2]


def weight(g: GraphBuilder, *shape: int) -> str:
    return g.const(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def simple(kind: str, **attributes: object) -> Emit:
    return lambda g, x, _: g.op(kind, x, **attributes)


def positive(emit: Emit) -> Emit:
    return lambda g, x, width: emit(g, g.op("Add", g.op("Abs", x), g.const(np.float32(0.1))), width)


def einsum(g: GraphBuilder, x: str, width: int) -> str:
    blocks = g.op("Reshape", x, g.const([-1, 4, width // 4]))
    return g.op("Einsum", blocks, weight(g, 4, width // 4, width // 4), equation="bhi,hij->bhj")


SOUND: dict[str, Emit] = {
    **{kind: simple(kind) for kind in ("Sigmoid", "Tanh", "Exp", "Abs", "Erf")},
    "Gelu tanh": simple("Gelu", approximate="tanh"),
    "Sqrt": positive(simple("Sqrt")),
    "Softmax": simple("Softmax", axis=-1),
    "ReduceMax": lambda g, x, _: g.op("ReduceMax", x, g.const([-1]), keepdims=1),
    "CumSum": lambda g, x, _: g.op("CumSum", x, g.const(np.int64(1))),
    "row_sum": row_sum,
    "row_mean of squares": lambda g, x, width: row_mean(g, g.op("Mul", x, x), width),
    "row_log": positive(lambda g, x, width: row_log(g, row_sum(g, x, width))),
    "MatMul": lambda g, x, width: g.op("MatMul", x, weight(g, width, 2 * width + 1)),
    "MatMul, small": lambda g, x, width: g.op("MatMul", x, weight(g, width, 5)),
    "MatMul + bias": lambda g, x, width: g.op(
        "Add", g.op("MatMul", x, weight(g, width, 3 * width)), weight(g, 3 * width)
    ),
    "Gemm transposed": lambda g, x, width: g.op("Gemm", x, weight(g, 64, width), transB=1),
}
OFFENDERS: dict[str, tuple[Emit, int]] = {
    "a sum over rows": (lambda g, x, _: g.op("Sub", x, g.op("ReduceMean", x, g.const([0]), keepdims=1)), 32),
    "ReduceSum of rows that are no multiple of four": (
        lambda g, x, _: g.op("ReduceSum", g.op("Mul", x, x), g.const([-1]), keepdims=1),
        57,
    ),
    "Log of a column": (positive(lambda g, x, width: g.op("Log", row_sum(g, x, width))), 32),
    "Einsum, batched products": (einsum, 256),
}


def differing_rows(emit: Emit, width: int, threads: int, rng: np.random.Generator) -> set[int]:
    """Row counts at which some row's bits depend on how many rows there are, or on where it stands."""
    g = GraphBuilder("probe")
    g.output("y", emit(g, g.input("x", FLOAT, ("r", width)), width), FLOAT, ("r", None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    run = onnxruntime.InferenceSession(
        g.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = rng.standard_normal((ROWS, width)).astype(np.float32)
    whole = run.run(None, {"x": x})[0]
    bad = set()
    for rows in (1, 2, 3, 5, 8, 17, 32):
        for at in range(0, ROWS - rows + 1, 1 if rows == 1 else 5):
            part = run.run(None, {"x": np.ascontiguousarray(x[at : at + rows])})[0]
            if part.tobytes() != np.ascontiguousarray(whole[at : at + rows]).tobytes():
                bad.add(rows)
    return bad


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("width", [32, 33, 40, 57, 256])
@pytest.mark.parametrize("name", SOUND)
def test_rows_do_not_depend_on_their_number(
    name: str, width: int, threads: int, rng: np.random.Generator
) -> None:
    assert differing_rows(SOUND[name], width, threads, rng) == set()


@pytest.mark.parametrize("name", OFFENDERS)
def test_known_offenders_are_still_caught(name: str, rng: np.random.Generator) -> None:
    emit, width = OFFENDERS[name]
    # A rounding may happen to agree for the values of one draw.
    assert any(differing_rows(emit, width, 1, rng) for _ in range(20))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("heads", [2, 5])
@pytest.mark.parametrize("slots", [7, 16, 256])
def test_attention_products_do_not_depend_on_the_batch(
    slots: int, heads: int, threads: int, rng: np.random.Generator
) -> None:
    """Two dynamic operands with at least two query rows: q (b,g,h,k) x ring (b,g,w,k), then back."""
    g = GraphBuilder("probe")
    q, ring = g.input("q", FLOAT, ("b", 2, heads, 24)), g.input("ring", FLOAT, ("b", 2, slots, 24))
    weights = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", ring, perm=[0, 1, 3, 2])), axis=-1)
    g.output("y", g.op("MatMul", weights, ring), FLOAT, ("b", 2, heads, 24))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    run = onnxruntime.InferenceSession(
        g.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x, y = (rng.standard_normal((9, 2, n, 24)).astype(np.float32) for n in (heads, slots))
    whole = run.run(None, {"q": x, "ring": y})[0]
    for row in range(9):
        alone = run.run(None, {"q": x[row : row + 1], "ring": y[row : row + 1]})[0]
        assert alone.tobytes() == whole[row : row + 1].tobytes()

"""The append to a layer's rings as an operator: the function's bits, in place and not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.export.graphs.builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from speechssm.export.graphs.griffin_nodes import Nodes
from speechssm.export.graphs.write_function import write_rings

WINDOW, KV, DIM = 7, 2, 5
SHAPE = LMShape(
    vocab=8, width=16, lru_width=16, heads=4, kv_heads=KV, head_dim=DIM, window=WINDOW, mlp_width=16,
    blocks=griffin_blocks(3), rope="none",
)  # fmt: skip
TYPES = {"float32": (FLOAT, np.float32), "float16": (FLOAT16, np.float16)}


def opened(ring: str, library: Path | None) -> ort.InferenceSession:
    n = Nodes(GraphBuilder("write"), SHAPE.model_copy(update={"ring": ring}))
    g, kind = n.g, TYPES[ring][0]
    slots, fresh = ("b", WINDOW, KV, DIM), ("b", KV, 1, DIM)
    key, value = (g.input(name, kind, slots) for name in ("key", "value"))
    k, v = (g.input(name, FLOAT, fresh) for name in ("k", "v"))
    position, active = g.input("position", INT64, ("b", 1)), g.input("active", BOOL, ("b", 1))
    (key_out,), (value_out,) = write_rings(n, ((key,), (value,)), (k, v), position, active)
    g.output("key_out", g.op("Identity", key_out) if library is None else key_out, kind, slots)
    g.output("value_out", g.op("Identity", value_out) if library is None else value_out, kind, slots)
    options = ort.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(g.model().SerializeToString(), options, providers=["CPUExecutionProvider"])


def case(rng: np.random.Generator, ring: str, rows: int) -> dict[str, np.ndarray]:
    dtype = TYPES[ring][1]
    made = {name: rng.standard_normal((rows, WINDOW, KV, DIM)).astype(dtype) for name in ("key", "value")}
    made |= {name: rng.standard_normal((rows, KV, 1, DIM)).astype(np.float32) for name in ("k", "v")}
    made["k"][0, 0, 0, 0] = np.nan
    made["position"] = rng.integers(0, 4 * WINDOW, (rows, 1))
    made["active"] = rng.random((rows, 1)) < 0.6
    return made


@pytest.mark.parametrize("ring", TYPES)
@pytest.mark.parametrize("rows", [1, 6])
def test_operator_and_function_write_the_same_bits(
    library: Path, rng: np.random.Generator, ring: str, rows: int
) -> None:
    given = case(rng, ring, rows)
    before = {name: array.copy() for name, array in given.items()}
    mine, theirs = opened(ring, library).run(None, given), opened(ring, None).run(None, given)
    for one, other in zip(mine, theirs, strict=True):
        assert one.tobytes() == other.tobytes()
    for name, array in given.items():
        assert array.tobytes() == before[name].tobytes(), f"{name} was touched"
    for b in range(rows):
        slot = int(given["position"][b, 0]) % WINDOW
        for name, new, out in (("key", "k", mine[0]), ("value", "v", mine[1])):
            wanted = given[name][b].copy()
            if given["active"][b, 0]:
                wanted[slot] = given[new][b, :, 0]
            assert out[b].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("ring", TYPES)
def test_a_ring_bound_to_its_output_is_written_where_it_lies(
    library: Path, rng: np.random.Generator, ring: str
) -> None:
    given = case(rng, ring, 4)
    session = opened(ring, library)
    wanted = session.run(None, given)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in given.items()}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in ("key", "value"):
        binding.bind_ortvalue_output(f"{name}_out", values[name])
    session.run_with_iobinding(binding)
    for name, want in zip(("key", "value"), wanted, strict=True):
        assert given[name].tobytes() == want.tobytes()


def test_refuses_shapes_that_do_not_fit(library: Path, rng: np.random.Generator) -> None:
    given = case(rng, "float32", 2)
    with pytest.raises(Exception, match="position and active must be"):
        opened("float32", library).run(None, {**given, "position": np.zeros((1, 1), np.int64)})

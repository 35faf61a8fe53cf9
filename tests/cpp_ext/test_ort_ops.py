"""RGLRUStep and RGLRUScan in real ONNX Runtime sessions, with and without the native library."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from speechssm.cpp_ext.build import library_file
from speechssm.export.graphs.builder import FLOAT16
from tests.cpp_ext.conftest import built
from tests.cpp_ext.lru_reference import assert_close, errors, random_case, rglru
from tests.cpp_ext.rglru_graphs import BFLOAT16, feeds, node_model, session

WITH_AND_WITHOUT = 1e-6


@pytest.fixture(scope="module", params=[False, True], ids=["function", "library"])
def chosen(request) -> Path | None:
    return request.getfixturevalue("library") if request.param else None


def executed_ops(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("kind", ["step", "scan"])
def test_the_library_is_used_when_loaded_and_only_then(library, tmp_path, kind):
    name = {"step": "RGLRUStep", "scan": "RGLRUScan"}[kind]
    session(node_model(kind), library, tmp_path / "with.onnx")
    session(node_model(kind), None, tmp_path / "without.onnx")
    assert name in executed_ops(tmp_path / "with.onnx")
    assert name not in executed_ops(tmp_path / "without.onnx")


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 17), (129, 2, 33), (257, 1, 130)], ids=str)
def test_scan_agrees_with_float64(chosen, rng, shape):
    tokens, rows, _ = shape
    case = random_case(rng, *shape)
    case["position"][: rows // 2] = 0
    case["state"][: rows // 2] = np.nan
    lengths = rng.integers(0, tokens + 1, rows)
    lengths[-1] = tokens
    for b in range(rows):
        for n in ("x", "gate_x", "gate_a"):
            case[n][lengths[b] :, b] = np.nan
    y, state = session(node_model("scan"), chosen).run(None, feeds(case, "scan", lengths))
    want_y, want_state = rglru(**case, lengths=lengths)
    assert_close(y, want_y, case["state"])
    ran = lengths > 0
    assert_close(state[ran], want_state[ran], case["state"], want_y)
    assert np.array_equal(state[~ran], case["state"][~ran], equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (64, 130)], ids=str)
def test_step_agrees_with_float64(chosen, rng, shape):
    case = random_case(rng, 1, *shape)
    case["position"][0] = 0
    case["state"][0] = np.nan
    active = rng.random(shape[0]) < 0.7
    active[0] = True
    for n in ("x", "gate_x", "gate_a"):
        case[n][0, ~active] = np.nan
    y, state = session(node_model("step"), chosen).run(None, feeds(case, "step", active))
    want_y, want_state = rglru(**case, active=active)
    assert_close(y, want_y[0], case["state"])
    assert_close(state, want_state, case["state"], want_y)
    assert np.array_equal(state[~active], case["state"][~active])


def test_with_and_without_the_library_agree(library, rng):
    case = random_case(rng, 1024, 2, 96)
    case["position"][0] = 0
    inputs = feeds(case, "scan", [1024, 700])
    for got, plain in zip(
        session(node_model("scan"), library).run(None, inputs),
        session(node_model("scan")).run(None, inputs),
        strict=True,
    ):
        assert max(errors(got, plain.astype(np.float64), case["state"])) <= WITH_AND_WITHOUT


def test_closed_and_open_gates_agree_too(library, rng):
    """Recurrence gates from 1e-9 to 1 and decays from 1e-5 to 80, one step from a unit state, per element."""
    case = random_case(rng, 1, 50, 401)
    case["gate_a"][0] = np.linspace(-20, 20, 401, dtype=np.float32)
    case["decay"] = rng.permutation(-np.geomspace(1e-5, 80, 401)).astype(np.float32)
    inputs = feeds(case, "step", np.ones(50))
    want, _ = rglru(**case)
    for path in (library, None):
        y, _ = session(node_model("step"), path).run(None, inputs)
        size = np.abs(case["state"]) + np.abs(case["x"][0])
        assert (np.abs(y - want[0]) / size).max() <= 3e-7


def test_scan_and_steps_give_the_same_bits(chosen, rng):
    case = random_case(rng, 12, 3, 45)
    case["position"][:] = [0, 5, 11]
    whole_y, whole_state = session(node_model("scan"), chosen).run(None, feeds(case, "scan", [12, 12, 12]))
    step, state, parts = session(node_model("step"), chosen), case["state"], []
    for t in range(12):
        one = {n: case[n][t : t + 1] for n in ("x", "gate_x", "gate_a")}
        one |= {"decay": case["decay"], "state": state, "position": case["position"] + t}
        y, state = step.run(None, feeds(one, "step", np.ones(3)))
        parts.append(y)
    assert np.stack(parts).tobytes() == whole_y.tobytes()
    assert state.tobytes() == whole_state.tobytes()


@pytest.mark.parametrize("kind", ["step", "scan"])
@pytest.mark.parametrize(("onnx_type", "dtype"), [(FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)])
def test_two_byte_streams(chosen, rng, kind, onnx_type, dtype):
    case = random_case(rng, 40 if kind == "scan" else 1, 3, 33)
    wide = case | {n: case[n].astype(dtype).astype(np.float32) for n in ("x", "gate_x", "gate_a")}
    outside = {
        n: wide[n].astype(dtype) if onnx_type == FLOAT16 else wide[n] for n in ("x", "gate_x", "gate_a")
    }
    rows = [40, 40, 40] if kind == "scan" else [1, 1, 1]
    y, state = session(node_model(kind, onnx_type), chosen).run(None, feeds(case | outside, kind, rows))
    want_y, want_state = rglru(**wide)
    assert_close(state, want_state, case["state"], want_y)
    spacing = float(ml_dtypes.finfo(dtype).eps)
    assert_close(y.astype(np.float32).reshape(want_y.shape), want_y, case["state"], slack=spacing / 2)


def test_wrong_shapes_are_errors_that_name_the_node(library, rng):
    scan = session(node_model("scan"), library)
    inputs = feeds(random_case(rng, 4, 2, 8), "scan", [4, 4])
    wrong = {
        "gate_a": np.zeros((4, 2, 7), np.float32),
        "decay": np.zeros(9, np.float32),
        "state": np.zeros((3, 8), np.float32),
        "position": np.zeros(1, np.int64),
        "lengths": np.zeros(3, np.int64),
    }
    for name, array in wrong.items():
        with pytest.raises(
            Exception, match=f"RGLRUScan.*{'gate_x and gate_a' if name == 'gate_a' else name}"
        ):
            scan.run(None, inputs | {name: array})
    scan.run(None, inputs)  # and the session is none the worse


def test_empty_inputs(library):
    scan = session(node_model("scan"), library)
    for tokens, rows in ((0, 2), (3, 0)):
        case = random_case(np.random.default_rng(), tokens, rows, 5)
        y, state = scan.run(None, feeds(case, "scan", [tokens] * rows))
        assert y.shape == (tokens, rows, 5)
        assert np.array_equal(state, case["state"])


def test_many_sessions_share_the_library(library, rng):
    case = random_case(rng, 6, 2, 20)
    inputs = feeds(case, "scan", [6, 6])
    sessions: list[ort.InferenceSession] = [session(node_model("scan"), library) for _ in range(3)]
    results = [s.run(None, inputs)[0].tobytes() for s in sessions]
    del sessions[0]
    results.append(sessions[0].run(None, inputs)[0].tobytes())
    assert len(set(results)) == 1


def test_the_cuda_build_serves_a_processor_too(library, rng):
    """find_library prefers it where it exists: one name, two devices, and here only a processor."""
    both = built("cuda") / library_file("ort")
    inputs = feeds(random_case(rng, 20, 2, 33), "scan", [20, 20])
    here = session(node_model("scan"), library).run(None, inputs)
    there = session(node_model("scan"), both).run(None, inputs)
    assert [a.tobytes() for a in here] == [a.tobytes() for a in there]

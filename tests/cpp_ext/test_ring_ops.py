"""RingAttend and RingScan in real ONNX Runtime sessions, with and without the native library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechssm.cpp_ext.build import library_file
from tests.cpp_ext.conftest import built
from tests.cpp_ext.lru_native import HostLibrary
from tests.cpp_ext.rglru_graphs import session
from tests.cpp_ext.ring_graphs import feeds, node_model, shape_of
from tests.cpp_ext.ring_native import run_ring
from tests.cpp_ext.ring_reference import assert_close, attend, random_case
from tests.cpp_ext.test_ort_ops import executed_ops

RINGS = ("float32", "float16", "int8")
SHAPES = ((4, 2, 8, 16), (3, 3, 17, 7), (10, 1, 64, 33), (22, 2, 12, 20))
"""Query heads, key/value heads, head dim, window."""
SLACK = 1e-6
"""The plain nodes sum w products in float32, in an order of their own."""


@pytest.fixture(scope="module", params=[False, True], ids=["function", "library"])
def chosen(request) -> Path | None:
    return request.getfixturevalue("library") if request.param else None


def run(model, case, kind, rows, path) -> dict[str, np.ndarray]:
    made = session(model, path)
    return dict(
        zip((o.name for o in made.get_outputs()), made.run(None, feeds(case, kind, rows)), strict=True)
    )


@pytest.mark.parametrize("kind", ["attend", "scan"])
@pytest.mark.parametrize("ring", RINGS)
def test_the_library_is_used_when_loaded_and_only_then(library, tmp_path, kind, ring):
    name = {"attend": "RingAttend", "scan": "RingScan"}[kind] + ("Int8" if ring == "int8" else "")
    model = node_model(kind, shape_of(4, 2, 8, 5, ring))
    session(model, library, tmp_path / "with.onnx")
    session(model, None, tmp_path / "without.onnx")
    assert name in executed_ops(tmp_path / "with.onnx")
    assert name not in executed_ops(tmp_path / "without.onnx")


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attend_agrees_with_float64(chosen, rng, shape, ring):
    case = random_case(rng, 1, 6, *shape, ring=ring)
    case["position"][:4] = [0, shape[3] - 1, shape[3], shape[3] + 1]
    active = np.array([1, 1, 1, 1, 0, 1])
    got = run(node_model("attend", shape_of(*shape, ring)), case, "attend", active, chosen)
    want_y, _, _ = attend(case, active=active, appends=False)
    assert_close(got["y"].reshape(want_y[0].shape), want_y[0], SLACK)
    assert (got["check_out"] == 0).all()
    assert (got["y"][4] == 0).all()


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scan_agrees_with_float64(chosen, rng, shape, ring):
    tokens = 40
    case = random_case(rng, tokens, 4, *shape, ring=ring)
    case["position"][:2] = 0
    lengths = np.array([tokens, 0, 7, 39])
    for b in range(4):
        for n in ("q", "k", "v"):
            case[n][lengths[b] :, b] = np.float32(1e3)
    got = run(node_model("scan", shape_of(*shape, ring)), case, "scan", lengths, chosen)
    want_y, _, rings = attend(case, lengths=lengths)
    assert_close(got["y"].reshape(want_y.shape), want_y, SLACK)
    assert (got["check_out"] == 0).all()
    for n, array in rings.items():
        assert got[f"{n}_out"].tobytes() == array.tobytes(), n


@pytest.mark.parametrize("kind", ["attend", "scan"])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_damage_shows_in_the_check(chosen, rng, kind, where):
    case = random_case(rng, 1, 3, 4, 2, 8, 5)
    case[where][0, 1].flat[3] = np.nan
    got = run(node_model(kind, shape_of(4, 2, 8, 5, "float32")), case, kind, [1, 1, 0], chosen)
    assert np.isnan(got["check_out"]).tolist() == [False, True, False]


@pytest.mark.parametrize("ring", RINGS)
def test_the_op_gives_the_bits_of_the_c_interface_on_any_threads(library, host: HostLibrary, rng, ring):
    case = random_case(rng, 20, 7, 6, 2, 19, 8, ring=ring)
    want_y, _, want = run_ring(host, case)
    model = node_model("scan", shape_of(6, 2, 19, 8, ring))
    for threads in (1, 2):
        made = session(model, library, threads=threads)
        y, _check, *rings = made.run(None, feeds(case, "scan", [20] * 7))
        assert y.tobytes() == want_y.tobytes()
        names = [o.name.removesuffix("_out") for o in made.get_outputs()][2:]
        assert all(a.tobytes() == want[n].tobytes() for n, a in zip(names, rings, strict=True))


def test_a_ring_bound_to_both_sides_is_written_in_place(library, rng):
    import onnxruntime as ort

    case = random_case(rng, 5, 3, 4, 2, 8, 6)
    made = session(node_model("scan", shape_of(4, 2, 8, 6, "float32")), library)
    inputs = feeds(case, "scan", [5, 0, 3])
    want = dict(zip((o.name for o in made.get_outputs()), made.run(None, inputs), strict=True))
    binding = made.io_binding()
    held = {n: ort.OrtValue.ortvalue_from_numpy(a.copy()) for n, a in inputs.items()}
    for n, value in held.items():
        binding.bind_ortvalue_input(n, value)
    for n in ("key", "value"):
        binding.bind_ortvalue_output(f"{n}_out", held[n])
    binding.bind_output("y")
    made.run_with_iobinding(binding)
    assert binding.get_outputs()[2].numpy().tobytes() == want["y"].tobytes()
    for n in ("key", "value"):
        assert held[n].numpy().tobytes() == want[f"{n}_out"].tobytes()


def test_wrong_shapes_are_errors_that_name_the_node(library, rng):
    made = session(node_model("scan", shape_of(4, 2, 8, 5, "int8")), library)
    inputs = feeds(random_case(rng, 3, 2, 4, 2, 8, 5, ring="int8"), "scan", [3, 3])
    wrong = {
        "k": (np.zeros((2, 2, 2, 8), np.float32), "k and v"),
        "q": (np.zeros((3, 2, 33), np.float32), "multiple"),
        "value": (np.zeros((2, 4, 2, 8), np.int8), "key and value"),
        "position": (np.zeros(1, np.int64), "position"),
        "lengths": (np.zeros(3, np.int64), "lengths"),
        "key_scale": (np.zeros((2, 4, 2), np.float32), "key_scale"),
    }
    for name, (array, said) in wrong.items():
        with pytest.raises(Exception, match=rf"(RingScanInt8.*{said}|Got invalid dimensions|Invalid)"):
            made.run(None, inputs | {name: array})
    made.run(None, inputs)  # and the session is none the worse


def test_empty_inputs(library, rng):
    made = session(node_model("scan", shape_of(4, 2, 8, 5, "float32")), library)
    for tokens, rows in ((0, 2), (3, 0)):
        case = random_case(rng, tokens, rows, 4, 2, 8, 5, pool=rows)
        case = {n: a[:rows] if n in ("key", "value") else a for n, a in case.items()}
        y, check, key, _ = made.run(None, feeds(case, "scan", [tokens] * rows))
        assert y.shape == (tokens, rows, 32)
        assert check.shape == (rows,)
        assert key.tobytes() == case["key"].tobytes()


def test_the_cuda_build_serves_a_processor_too(library, rng):
    both = built("cuda") / library_file("ort")
    case = random_case(rng, 20, 2, 4, 2, 8, 5)
    model = node_model("scan", shape_of(4, 2, 8, 5, "float32"))
    here, there = (session(model, path).run(None, feeds(case, "scan", [20, 9])) for path in (library, both))
    assert [a.tobytes() for a in here] == [a.tobytes() for a in there]

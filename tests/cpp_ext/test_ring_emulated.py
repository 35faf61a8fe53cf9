"""The attention ring's kernels, thread by thread on a processor: what they compute, without a device.

``kernels/ring*.cu`` are compiled by the host's compiler with the emulated runtime of ``emulated/``: blocks,
warps, barriers and shuffles are real, only one thread runs at a time. The tests marked gpu ask a device the
same; this cannot show races, speed or a device's own rounding.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from ctypes import c_int32, c_void_p
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from speechssm.cpp_ext.build import SOURCES
from tests.cpp_ext.ring_native import PARTS, call_of
from tests.cpp_ext.ring_reference import RINGS, assert_close, attend, random_case

HERE = Path(__file__).parent / "emulated"
F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16
PAIRS = [(F32, "float32"), (F32, "float16"), (F32, "bfloat16"), (F32, "int8"), (F16, "float16"), (F16, "int8"),
         (BF16, "bfloat16"), (BF16, "int8")]  # fmt: skip
SHAPES = ((1, 1, 1, 1, 1, 1), (1, 3, 4, 2, 8, 16), (5, 2, 3, 1, 17, 7), (9, 2, 10, 1, 64, 16),
          (2, 2, 22, 2, 36, 33), (3, 2, 9, 3, 100, 50), (1, 2, 5, 1, 256, 70), (2, 1, 2, 2, 512, 40))  # fmt: skip
"""Tokens, rows, query heads, key/value heads, head dim, window."""
STEPS = ((3, 2, 1, 7, 5), (3, 10, 1, 256, 100), (2, 20, 2, 100, 70), (1, 16, 1, 512, 64), (2, 16, 2, 64, 33),
         (1, 64, 4, 128, 90), (2, 6, 2, 250, 40), (20, 4, 1, 12, 9))  # fmt: skip
LAUNCH = re.compile(r"(\bring_\w+(?:<[^<>]*>)?)<<<(.*), (.*?), (.*?), stream>>>\((.*?)\);")
BLOCKS = [(1, 0), (2, 0), (2, 4)]
"""Kernel version and pieces."""


def for_a_processor(source: str) -> str:
    """What a host's compiler cannot read, said otherwise: launches and shared memory."""
    source = source.replace(
        "extern __shared__ float shared[];",
        "float* shared = reinterpret_cast<float*>(emulated::device.shared.data());",
    )
    made, count = LAUNCH.subn(r"emulated::launch(\2, \3, \4, [=] { \1(\5); });", source)
    assert count == source.count("<<<")
    return made


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    if not shutil.which("c++"):
        pytest.skip("needs a C++ compiler (apt-get install g++)")
    folder = tmp_path_factory.mktemp("emulated")
    sources = []
    for name in ("ring", "ring_step"):
        sources.append(folder / f"{name}.cpp")
        sources[-1].write_text(for_a_processor((SOURCES / "kernels" / f"{name}.cu").read_text()))
    command = [
        "c++",
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-ffp-contract=off",
        "-DSPEECHSSM_ISA=isa_emulated",
    ]
    command += [f"-I{p}" for p in (HERE, SOURCES / "include", SOURCES / "kernels")]
    subprocess.run([*command, *map(str, sources), "-o", str(folder / "ring.so")], check=True)
    library = ctypes.CDLL(str(folder / "ring.so"))
    library.speechssm_ring_cuda.argtypes = [c_void_p, c_int32, c_void_p]
    return library


def run(kernels: ctypes.CDLL, case: dict, version=1, pieces=0, **options):
    call, keep, y, check, rings = call_of(case, pieces=pieces, **options)
    if pieces > 1:
        rows, (heads, dim) = case["q"].shape[1], case["q"].shape[2:]
        workspace = np.full(rows * heads * pieces * (dim + 2) * 4, 255, np.uint8)
        call.workspace, call.workspace_bytes = workspace.ctypes.data, workspace.nbytes
    assert kernels.speechssm_ring_cuda(ctypes.addressof(call), version, None) == 0
    del keep
    return y, check, rings


def compare(kernels, case, version=1, pieces=0, **options):
    y, check, rings = run(kernels, case, version, pieces, **options)
    want_y, want_check, want = attend(case, appends=options.get("appends", True))
    dtype = case["q"].dtype
    assert_close(y, want_y, 0.0 if dtype == F32 else float(ml_dtypes.finfo(dtype).eps) / 2)
    assert np.array_equal(np.isnan(check), np.isnan(want_check))
    for n, ring in rings.items():
        assert ring.tobytes() == want[n].tobytes(), n


@pytest.mark.parametrize(("dtype", "ring"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks(kernels, rng, shape, dtype, ring):
    compare(kernels, random_case(rng, *shape, dtype=dtype, ring=ring))


@pytest.mark.parametrize(("dtype", "ring"), PAIRS[::3])
@pytest.mark.parametrize("pieces", [1, 3, 16])
@pytest.mark.parametrize("shape", STEPS, ids=str)
def test_steps_in_pieces(kernels, rng, shape, pieces, dtype, ring):
    case = random_case(rng, 1, *shape, dtype=dtype, ring=ring)
    case["position"][0] = 1
    compare(kernels, case, 2, pieces)
    compare(kernels, case, 2, pieces, appends=False)


@pytest.mark.parametrize(("version", "pieces"), BLOCKS)
@pytest.mark.parametrize("ring", RINGS)
def test_ragged_aliased_permuted_poisoned(kernels, rng, version, pieces, ring):
    tokens, rows, pool = 1 if version == 2 else 12, 6, 9
    case = random_case(rng, tokens, rows, 4, 2, 19, 40, pool=pool, ring=ring)
    lengths, active = np.array([tokens, 0, 1, 500, tokens, -3]), np.array([1, 1, 1, 1, 0, 1])
    slots = rng.permutation(pool)[:rows]
    slots[2] = -1
    case["position"] = np.array([0, 3, 5, 39, 7, 80])
    for part in [n for n in ("key_scale", "value_scale") if n in case] or ["key", "value"]:
        case[part][slots[0]] = np.nan
    before = {n: case[n].copy() for n in PARTS if n in case}
    given = {"lengths": lengths, "active": active, "slots": slots}
    y, check, rings = run(kernels, case, version, pieces, in_place=True, **given)
    want_y, _, want = attend(case, **given)
    assert_close(y, want_y)
    assert (check == 0).all()
    runs = {int(slots[b]) for b in range(rows) if slots[b] >= 0 and active[b] and lengths[b] > 0}
    for n, out in rings.items():
        for slot in range(pool):
            assert out[slot].tobytes() == (want[n] if slot in runs else before[n])[slot].tobytes()


@pytest.mark.parametrize(("version", "pieces"), BLOCKS)
@pytest.mark.parametrize("where", ["q", "k", "v", "key", "value"])
def test_damage_shows_in_the_check_of_its_row(kernels, rng, version, pieces, where):
    for value in (np.nan, np.inf):
        case = random_case(rng, 1, 3, 2, 1, 33, 40)
        case["position"][:] = 40
        (case[where][1, 3, 0] if where in ("key", "value") else case[where][0, 1, 0])[20] = value
        assert np.isnan(run(kernels, case, version, pieces)[1]).tolist() == [False, True, False]


def test_neighbours_change_no_bit(kernels, rng):
    case = random_case(rng, 4, 5, 10, 1, 32, 40)
    y, _, rings = run(kernels, case)
    alone = {n: case[n][:, 2:3] for n in ("q", "k", "v")} | {
        n: case[n][2:3] for n in ("key", "value", "position")
    }
    y_alone, _, rings_alone = run(kernels, alone)
    assert y_alone.tobytes() == np.ascontiguousarray(y[:, 2:3]).tobytes()
    assert rings_alone["value"].tobytes() == rings["value"][2:3].tobytes()

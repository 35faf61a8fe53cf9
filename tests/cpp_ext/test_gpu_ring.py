"""The attention ring's kernels on a device: against float64, captured, ragged, aliased (catalogue P1, P2, S7)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from speechssm.cpp_ext.build import library_file
from speechssm.cpp_ext.native import CudaLibrary
from tests.cpp_ext.conftest import built
from tests.cpp_ext.ring_native import PARTS, call_of
from tests.cpp_ext.ring_reference import RINGS, assert_close, attend, random_case
from tests.cpp_ext.test_ring_host import SHAPES

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16
PAIRS = [(F32, "float32"), (F32, "float16"), (F32, "bfloat16"), (F32, "int8"), (F16, "float16"), (F16, "int8"),
         (BF16, "bfloat16"), (BF16, "int8")]  # fmt: skip
"""Streams and rings the launcher takes."""


@pytest.fixture(scope="module")
def cuda() -> CudaLibrary:
    return CudaLibrary(built("cuda") / library_file("cuda"))


class OnDevice:
    """A host call moved to the device, array by array; two names of one array stay one."""

    def __init__(self, cuda: CudaLibrary, case: dict, pieces: int = 0, **options) -> None:
        self.cuda = cuda
        self.call, self.keep, *_ = call_of(case, pieces=pieces, **options)
        moved: dict[int, torch.Tensor] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        for name, array in self.keep.items():
            if array is None:
                continue
            if id(array) not in moved:
                raw = np.frombuffer(bytearray(np.ascontiguousarray(array).tobytes() or b"\0"), np.uint8)
                moved[id(array)] = torch.from_numpy(raw).cuda()
            self.tensors[name] = moved[id(array)]
            setattr(self.call, name, moved[id(array)].data_ptr())
        if pieces > 1:
            rows, (heads, dim) = case["q"].shape[1], case["q"].shape[2:]
            size = cuda.ring_workspace_bytes(rows, heads, dim, pieces)
            self.workspace = torch.full((size,), 255, dtype=torch.uint8, device="cuda")
            self.call.workspace, self.call.workspace_bytes = self.workspace.data_ptr(), size

    def run(self, version: int) -> None:
        self.cuda.ring(self.call, torch.cuda.current_stream().cuda_stream, version)

    def array(self, name: str) -> np.ndarray:
        torch.cuda.synchronize()
        like = self.keep[name]
        return np.frombuffer(self.tensors[name].cpu().numpy().tobytes()[: like.nbytes], like.dtype).reshape(
            like.shape
        )

    def rings(self) -> dict[str, np.ndarray]:
        return {n: self.array(f"{n}_out") for n in PARTS if self.keep[f"{n}_out"] is not None}


def check(cuda, case, version=1, slack=0.0, pieces=0, **options) -> OnDevice:
    device = OnDevice(cuda, case, pieces, **options)
    device.run(version)
    named = {n: options.get(n) for n in ("lengths", "active", "slots")}
    want_y, want_check, want = attend(case, appends=options.get("appends", True), **named)
    assert_close(device.array("y"), want_y, slack)
    assert np.array_equal(np.isnan(device.array("check")), np.isnan(want_check))
    for n, ring in device.rings().items():
        assert ring.tobytes() == want[n].tobytes(), n
    return device


def slack_of(dtype) -> float:
    return 0.0 if dtype is F32 else float(ml_dtypes.finfo(dtype).eps) / 2


@pytest.mark.parametrize(("dtype", "ring"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks(cuda, rng, shape, dtype, ring):
    check(cuda, random_case(rng, *shape, dtype=dtype, ring=ring), slack=slack_of(dtype))


@pytest.mark.parametrize(("dtype", "ring"), PAIRS)
@pytest.mark.parametrize("pieces", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 2, 1, 7, 5),
        (5, 10, 1, 256, 2048),
        (2, 20, 2, 100, 300),
        (1, 16, 1, 512, 64),
        (2, 16, 2, 64, 33),
        (1, 64, 4, 128, 300),
        (3, 6, 2, 250, 40),
    ],
)
def test_steps_in_pieces(cuda, rng, shape, pieces, dtype, ring):
    case = random_case(rng, 1, *shape, dtype=dtype, ring=ring)
    case["position"][0] = 1
    check(cuda, case, 2, slack_of(dtype), pieces)


@pytest.mark.parametrize(("version", "pieces"), [(1, 0), (2, 0), (2, 4)])
@pytest.mark.parametrize("ring", RINGS)
def test_ragged_aliased_permuted_poisoned(cuda, rng, version, pieces, ring):
    tokens, rows, pool, window = 1 if version == 2 else 12, 6, 9, 40
    case = random_case(rng, tokens, rows, 4, 2, 19, window, pool=pool, ring=ring)
    lengths, active = np.array([tokens, 0, 1, 500, tokens, -3]), np.array([1, 1, 1, 1, 0, 1])
    slots = rng.permutation(pool)[:rows]
    slots[2] = -1
    case["position"] = np.array([0, 3, 5, 39, 7, 80])
    parts = [n for n in ("key_scale", "value_scale") if n in case] or ["key", "value"]
    for part in parts:
        case[part][slots[0]] = np.nan
    before = {n: case[n].copy() for n in PARTS if n in case}
    rows_given = {"lengths": lengths, "active": active, "slots": slots}
    device = OnDevice(cuda, case, pieces, in_place=True, **rows_given)
    device.run(version)
    want_y, _, want = attend(case, **rows_given)
    assert_close(device.array("y"), want_y)
    assert (device.array("check") == 0).all()
    runs = {int(slots[b]) for b in range(rows) if slots[b] >= 0 and active[b] and lengths[b] > 0}
    for n, ring_out in device.rings().items():
        for slot in range(pool):
            assert ring_out[slot].tobytes() == (want[n] if slot in runs else before[n])[slot].tobytes()


@pytest.mark.parametrize(("version", "pieces"), [(1, 0), (2, 0), (2, 4)])
@pytest.mark.parametrize("where", ["q", "k", "v", "key", "value"])
def test_damage_shows_in_the_check_of_its_row(cuda, rng, version, pieces, where):
    for value in (np.nan, np.inf):
        case = random_case(rng, 1, 3, 2, 1, 33, 40)
        case["position"][:] = 40
        (case[where][1, 3, 0] if where in ("key", "value") else case[where][0, 1, 0])[20] = value
        device = OnDevice(cuda, case, pieces)
        device.run(version)
        assert np.isnan(device.array("check")).tolist() == [False, True, False]


@pytest.mark.parametrize(("version", "pieces"), [(1, 0), (2, 0), (2, 4)])
def test_captured_replay_equals_eager(cuda, rng, version, pieces):
    """Capture forbids synchronising and stream-unordered allocation: passing means the launcher does neither."""
    case = random_case(rng, 1, 5, 10, 1, 64, 128)
    eager = OnDevice(cuda, case, pieces)
    eager.run(version)
    captured = OnDevice(cuda, case, pieces)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.run(version)
    assert np.isnan(captured.array("y")).all()  # capturing runs nothing
    graph.replay()
    assert captured.array("y").tobytes() == eager.array("y").tobytes()
    assert all(a.tobytes() == eager.rings()[n].tobytes() for n, a in captured.rings().items())


def test_a_chunk_and_its_tokens_give_the_same_bits(cuda, rng):
    case = random_case(rng, 20, 3, 4, 2, 24, 16)
    whole = OnDevice(cuda, case)
    whole.run(1)
    rings = {n: case[n] for n in ("key", "value")}
    for t in range(20):
        one = {n: case[n][t : t + 1] for n in ("q", "k", "v")} | rings | {"position": case["position"] + t}
        step = OnDevice(cuda, one)
        step.run(1)
        rings = step.rings()
        assert step.array("y")[0].tobytes() == whole.array("y")[t].tobytes()
    assert all(rings[n].tobytes() == whole.rings()[n].tobytes() for n in rings)

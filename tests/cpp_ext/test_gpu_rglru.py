"""The CUDA kernels on a device: against float64, captured, ragged, aliased (catalogue P1, P2, S7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssm.cpp_ext.build import library_file
from speechssm.cpp_ext.native import CudaLibrary
from tests.cpp_ext import lru_reference
from tests.cpp_ext.conftest import built
from tests.cpp_ext.lru_reference import assert_close, rglru

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from speechssm.cpp_ext.gpu.device_case import DeviceCase  # noqa: E402  (only where there is a device)

SLACK = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module")
def cuda() -> CudaLibrary:
    return CudaLibrary(built("cuda") / library_file("cuda"))


def on_device(case: dict, dtype=torch.float32, **options) -> DeviceCase:
    kinds = {"lengths": torch.int64, "active": torch.uint8, "slots": torch.int32}
    given = {n: torch.as_tensor(np.asarray(v)).cuda().to(kinds[n]) for n, v in options.items() if n in kinds}
    streams = {n: torch.as_tensor(case[n]).cuda().to(dtype) for n in ("x", "gate_x", "gate_a")}
    state = torch.as_tensor(case["state"].copy()).cuda()
    position = torch.as_tensor(np.asarray(case["position"], np.int64)).cuda()
    others = {n: v for n, v in options.items() if n in ("in_place", "chunk")}
    return DeviceCase(
        **streams,
        decay=torch.as_tensor(case["decay"]).cuda(),
        state=state,
        position=position,
        **given,
        **others,
    )


def run(cuda: CudaLibrary, device: DeviceCase, kind: str, version: int) -> tuple[np.ndarray, np.ndarray]:
    call = device.call(cuda)
    getattr(cuda, kind)(call, torch.cuda.current_stream().cuda_stream, version)
    torch.cuda.synchronize()
    return device.y.float().cpu().numpy(), device.state_out.cpu().numpy()


def check(cuda: CudaLibrary, case: dict, kind: str, version: int, dtype=torch.float32, **options) -> None:
    device = on_device(case, dtype, **options)
    before = case["state"]
    seen = case | {n: getattr(device, n).float().cpu().numpy() for n in ("x", "gate_x", "gate_a")}
    y, state = run(cuda, device, kind, version)
    want_y, want_state = rglru(**seen, **{n: options.get(n) for n in ("lengths", "active", "slots")})
    assert_close(y, want_y, before, slack=SLACK[dtype])
    named = np.arange(len(before)) if options.get("slots") is None else np.asarray(options["slots"])
    named = named[(named >= 0) & (named < len(before))]
    alive = np.isfinite(want_state[named]).all(1)
    assert_close(state[named][alive], want_state[named][alive], before, want_y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 36), (64, 2560), (1024, 100)], ids=str)
def test_step(cuda, rng, shape, version, dtype):
    case = lru_reference.random_case(rng, 1, *shape)
    case["position"][0] = 0
    check(cuda, case, "step", version, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("version", "chunk"), [(2, 0), *((1, c) for c in (1, 2, 3, 127, 128, 129, 1000))])
@pytest.mark.parametrize("tokens", [1, 2, 3, 127, 128, 129, 1000])
def test_scan(cuda, rng, tokens, version, chunk, dtype):
    check(cuda, lru_reference.random_case(rng, tokens, 3, 130), "scan", version, dtype, chunk=chunk)


@pytest.mark.parametrize(("version", "chunk"), [(2, 0), (1, 32), (0, 32)])
@pytest.mark.parametrize("width", [21, 64])
def test_ragged_aliased_permuted_poisoned(cuda, rng, version, chunk, width):
    tokens, rows, pool = 130, 8, 14
    case = lru_reference.random_case(rng, tokens, rows, width, pool)
    lengths = np.array([130, 0, 1, 129, 77, 500, -3, 128])
    active = np.array([1, 1, 1, 1, 0, 1, 1, 1])
    slots = rng.permutation(pool)[:rows]
    slots[7] = -1
    case["position"] = np.array([0, 0, 0, 5, 0, 3, 0, 7])
    for name in ("x", "gate_x", "gate_a"):
        for b in range(rows):
            case[name][min(max(lengths[b], 0), tokens) if active[b] and slots[b] >= 0 else 0 :, b] = np.nan
    case["state"][slots[0]] = np.nan
    case["state"][slots[1]].view(np.uint32)[:] = 0x7FA00001  # a signalling NaN must come through as it was
    device = on_device(case, lengths=lengths, active=active, slots=slots, in_place=True, chunk=chunk)
    y, state = run(cuda, device, "scan", version)
    want_y, want_state = rglru(**case, lengths=lengths, active=active, slots=slots)
    assert_close(y, want_y, case["state"])
    ran = [b for b in range(rows) if slots[b] >= 0 and active[b] and lengths[b] > 0]
    for b in ran:
        assert_close(state[slots[b]], want_state[slots[b]], case["state"][slots[b]], want_y[:, b])
    for slot in set(range(pool)) - {int(slots[b]) for b in ran}:
        assert state[slot].tobytes() == case["state"][slot].tobytes()


@pytest.mark.parametrize("kind", ["step", "scan"])
@pytest.mark.parametrize("version", [1, 2])
def test_captured_replay_equals_eager(cuda, rng, kind, version):
    """Capture forbids synchronising and stream-unordered allocation: passing means the launcher does neither."""
    tokens = 1 if kind == "step" else 200
    case = lru_reference.random_case(rng, tokens, 6, 256)
    eager = run(cuda, on_device(case, chunk=0 if kind == "step" else 32), kind, version)
    device = on_device(case, chunk=0 if kind == "step" else 32)
    call = device.call(cuda)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        getattr(cuda, kind)(call, torch.cuda.current_stream().cuda_stream, version)
    assert torch.isnan(device.y).all()  # capturing runs nothing
    graph.replay()
    torch.cuda.synchronize()
    assert device.y.cpu().numpy().tobytes() == eager[0].tobytes()
    assert device.state_out.cpu().numpy().tobytes() == eager[1].tobytes()


def test_steps_and_scan_agree_bit_for_bit(cuda, rng):
    """Version 2 walks the tokens with the step's arithmetic, so a chunk is its tokens one by one."""
    case = lru_reference.random_case(rng, 40, 4, 128)
    case["position"][0] = 0
    whole_y, whole_state = run(cuda, on_device(case), "scan", 2)
    state = case["state"]
    for t in range(40):
        one = case | {n: case[n][t : t + 1] for n in ("x", "gate_x", "gate_a")}
        y, state = run(cuda, on_device(one | {"state": state, "position": case["position"] + t}), "step", 2)
        assert y[0].tobytes() == whole_y[t].tobytes()
    assert state.tobytes() == whole_state.tobytes()

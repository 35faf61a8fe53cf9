"""The adapter to a real GPU: managed memory, captured work, and our kernels through both (S7 on a device)."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from speechssm.cpp_ext.build import library_file
from speechssm.cpp_ext.native import RGLRU, CudaLibrary
from speechssm.engines.capture import first_step
from speechssm.engines.device import Device, open_device
from speechssm.errors import EngineError
from tests.cpp_ext.conftest import built

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return open_device()
    except EngineError as error:
        pytest.skip(str(error))


def step_call(device: Device, rows: int, width: int, in_place: bool) -> tuple[RGLRU, dict[str, np.ndarray]]:
    """One decode step on managed arrays; state in place or from one set to another."""
    rng = np.random.default_rng()
    arrays = {
        name: device.zeros((rows, width), "float32") for name in ("x", "gate_x", "gate_a", "y", "state_in")
    }
    for name in ("x", "gate_x", "gate_a", "state_in"):
        arrays[name][...] = rng.standard_normal((rows, width))
    arrays["decay"] = device.zeros((width,), "float32")
    arrays["decay"][:] = -rng.uniform(0.01, 1, width)
    arrays["position"] = device.zeros((rows,), "int64")
    arrays["position"][:] = 5
    arrays["state_out"] = arrays["state_in"] if in_place else device.zeros((rows, width), "float32")
    call = RGLRU()
    call.struct_bytes = ctypes.sizeof(RGLRU)
    call.tokens, call.rows, call.width, call.slot_count = 1, rows, width, rows
    call.token_stride, call.row_stride = rows * width, width
    for name, array in arrays.items():
        setattr(call, name, array.ctypes.data)
    return call, arrays


@pytest.mark.parametrize("in_place", [False, True], ids=["ping-pong", "in place"])
def test_s7_a_captured_step_equals_the_eager_one(device: Device, in_place: bool) -> None:
    """S7: through the same check that guards every engine's first step."""
    library = CudaLibrary(built("cuda") / library_file("cuda"))
    call, arrays = step_call(device, 7, 260, in_place)
    captured: list[object] = []

    def eager() -> None:
        library.step(call, device.stream)
        device.synchronize()

    def capture() -> None:
        device.begin_capture()
        library.step(call, device.stream)
        captured.append(device.end_capture())

    def replay() -> None:
        device.launch(captured[0])
        device.synchronize()

    outputs = {name: arrays[name] for name in ("y", "state_out")}
    inside = {"state_out": arrays["state_out"]} if in_place else {}
    assert first_step("the step", eager, capture, replay, outputs, inside) is None
    assert np.isfinite(arrays["y"]).all()
    device.release(captured[0])


def test_managed_memory_is_seen_from_both_sides(device: Device) -> None:
    array = device.zeros((3, 1000), "float32")
    assert not array.any()
    array[1] = 7
    scratch = device.allocate(1 << 20)
    device.free(scratch)
    view = array[1:]
    del array
    gc.collect()
    assert (view[0] == 7).all()


def test_too_much_memory_is_a_sentence(device: Device) -> None:
    with pytest.raises(EngineError, match="cannot allocate"):
        device.allocate(1 << 50)

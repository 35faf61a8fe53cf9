"""The C interface (rglru_api.h, conv4_api.h) through ctypes: what a C caller sees, on numpy arrays."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path

import ml_dtypes
import numpy as np

from speechssm.cpp_ext.native import RGLRU, Conv4

DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(ml_dtypes.bfloat16): 2}
SCALAR, AVX2, AVX512 = 0, 1, 2


def pointer(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def poisoned(shape, dtype) -> np.ndarray:
    """An output nobody has written yet: every byte 0xff, a NaN in all three dtypes."""
    return np.frombuffer(
        bytearray(b"\xff" * (int(np.prod(shape)) * np.dtype(dtype).itemsize)), dtype
    ).reshape(shape)


def rows_array(values, dtype) -> np.ndarray | None:
    return None if values is None else np.ascontiguousarray(values, dtype)


class HostLibrary:
    """``libspeechssm_host``."""

    def __init__(self, path: Path) -> None:
        lib = ctypes.CDLL(str(path))
        lib.speechssm_status_text.restype = ctypes.c_char_p
        lib.speechssm_rglru_workspace_bytes.restype = c_int64
        lib.speechssm_rglru_step_host.argtypes = [c_void_p]
        lib.speechssm_rglru_scan_host.argtypes = [c_void_p, c_int32]
        lib.speechssm_conv4_host.argtypes = [c_void_p]
        self.lib = lib

    def set_isa(self, isa: int) -> int:
        return int(self.lib.speechssm_host_set_isa(isa))

    def text(self, status: int) -> str:
        return self.lib.speechssm_status_text(status).decode()

    def call_of(
        self,
        case: dict,
        *,
        chunk=0,
        layout="tbe",
        in_place=False,
        lengths=None,
        active=None,
        slots=None,
        branch=None,
    ):
        """A filled struct, the arrays that keep it alive, the outputs y (t,b,e view) and state (slot,e)."""
        tokens, rows, width = case["x"].shape
        order = (0, 1, 2) if layout == "tbe" else (1, 0, 2)
        streams = {n: np.ascontiguousarray(case[n].transpose(order)) for n in ("x", "gate_x", "gate_a")}
        streams["branch"] = None if branch is None else np.ascontiguousarray(branch.transpose(order))
        y = poisoned(streams["x"].shape, case["x"].dtype)
        state_in = case["state"].copy()
        state_out = state_in if in_place else poisoned(state_in.shape, np.float32)
        keep = {
            **streams, "y": y, "decay": case["decay"], "state_in": state_in, "state_out": state_out,
            "position": rows_array(case["position"], np.int64), "lengths": rows_array(lengths, np.int64),
            "active": rows_array(active, np.uint8), "slots": rows_array(slots, np.int32),
        }  # fmt: skip
        size = int(self.lib.speechssm_rglru_workspace_bytes(tokens, rows, width, chunk)) if chunk else 0
        keep["workspace"] = poisoned((size,), np.uint8) if size else None
        call = RGLRU(
            struct_bytes=ctypes.sizeof(RGLRU), dtype=DTYPES[case["x"].dtype], tokens=tokens, rows=rows
        )
        call.width, call.slot_count, call.chunk, call.workspace_bytes = width, len(state_in), chunk, size
        call.token_stride, call.row_stride = (
            (rows * width, width) if layout == "tbe" else (width, tokens * width)
        )
        for name, array in keep.items():
            setattr(call, name, pointer(array))
        return call, keep, y.transpose(order), state_out

    def scan(self, case: dict, *, version=1, **options):
        call, keep, y, state = self.call_of(case, **options)
        status = self.lib.speechssm_rglru_scan_host(ctypes.addressof(call), version)
        assert status == 0, self.text(status)
        del keep
        return y, state

    def step(self, case: dict, **options):
        call, keep, y, state = self.call_of(case, **options)
        status = self.lib.speechssm_rglru_step_host(ctypes.addressof(call))
        assert status == 0, self.text(status)
        del keep
        return y, state

    def conv4(
        self, u, weight, bias, state, position, *, in_place=False, lengths=None, active=None, slots=None
    ):
        tokens, rows, width = u.shape
        state_in = state.copy()
        state_out = state_in if in_place else poisoned(state.shape, state.dtype)
        y = poisoned(u.shape, u.dtype)
        keep = {
            "u": np.ascontiguousarray(u), "y": y, "weight": weight, "bias": bias,
            "state_in": state_in, "state_out": state_out, "position": rows_array(position, np.int64),
            "lengths": rows_array(lengths, np.int64), "active": rows_array(active, np.uint8),
            "slots": rows_array(slots, np.int32),
        }  # fmt: skip
        call = Conv4(
            struct_bytes=ctypes.sizeof(Conv4), dtype=DTYPES[u.dtype], tokens=tokens, rows=rows, width=width
        )
        call.slot_count, call.token_stride, call.row_stride = len(state), rows * width, width
        for name, array in keep.items():
            setattr(call, name, pointer(array))
        status = self.lib.speechssm_conv4_host(ctypes.addressof(call))
        assert status == 0, self.text(status)
        return y, state_out

"""The attention ring's C interface (ring_api.h) through ctypes: what a C caller sees, on numpy arrays."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import numpy as np

from speechssm.cpp_ext.native import Ring
from tests.cpp_ext.lru_native import DTYPES, HostLibrary, pointer, poisoned, rows_array

RING_DTYPES = DTYPES | {np.dtype(np.int8): 3}
PARTS = ("key", "value", "key_scale", "value_scale")


def call_of(
    case: dict,
    *,
    layout="tb",
    in_place=False,
    appends=True,
    lengths=None,
    active=None,
    slots=None,
    pieces=0,
):
    """A filled struct, the arrays that keep it alive, and the outputs y (t,b,h,k), check and rings."""
    tokens, rows, heads, dim = case["q"].shape
    order = (0, 1, 2, 3) if layout == "tb" else (1, 0, 2, 3)
    keep = {n: np.ascontiguousarray(case[n].transpose(order)) for n in ("q", "k", "v")}
    keep["y"], keep["check"] = poisoned(keep["q"].shape, case["q"].dtype), poisoned((rows,), np.float32)
    for n in PARTS:
        keep[f"{n}_in"] = case[n].copy() if n in case else None
        taken = n in case and appends
        keep[f"{n}_out"] = (
            None if not taken else keep[f"{n}_in"] if in_place else poisoned(case[n].shape, case[n].dtype)
        )
    keep |= {
        "position": rows_array(case["position"], np.int64), "lengths": rows_array(lengths, np.int64),
        "active": rows_array(active, np.uint8), "slots": rows_array(slots, np.int32),
    }  # fmt: skip
    call = Ring(struct_bytes=ctypes.sizeof(Ring), dtype=DTYPES[case["q"].dtype], tokens=tokens, rows=rows)
    call.ring_dtype, call.slot_count = RING_DTYPES[case["key"].dtype], len(case["key"])
    call.heads, call.kv_heads, call.head_dim = heads, case["k"].shape[2], dim
    call.window, call.pieces = case["key"].shape[1], pieces
    call.token_stride, call.row_stride = (rows, 1) if layout == "tb" else (1, tokens)
    for name, array in keep.items():
        setattr(call, name, pointer(array))
    rings = {n: keep[f"{n}_out"] for n in PARTS if keep[f"{n}_out"] is not None}
    return call, keep, keep["y"].transpose(order), keep["check"], rings


def run_ring(host: HostLibrary, case: dict, *, version=1, **options):
    """y (t,b,h,k), check (b) and the rings written."""
    host.lib.speechssm_ring_host.argtypes = [c_void_p, c_int32]
    host.lib.speechssm_ring_workspace_bytes.restype = c_int64
    call, keep, y, check, rings = call_of(case, **options)
    status = host.lib.speechssm_ring_host(ctypes.addressof(call), version)
    assert status == 0, host.text(status)
    del keep
    return y, check, rings

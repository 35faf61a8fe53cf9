"""The structs of the C interface (``include/speechssm/*_api.h``) as ctypes, for callers without a compiler.

Field order and types are those of the headers; ``struct_bytes`` lets the library refuse a caller whose
layout is another. Addresses are plain integers: of host memory for the ``*_host`` functions, of device
memory for the ``*_cuda`` ones.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

F32, F16, BF16, I8, BLOCKS8, BLOCKS4 = 0, 1, 2, 3, 4, 5


class RGLRU(ctypes.Structure):
    """``speechssm_rglru``: one decode step or prefill scan."""

    _fields_ = (
        ("struct_bytes", c_uint64),
        *((n, c_int32) for n in ("dtype", "tokens", "rows", "width", "slot_count", "chunk")),
        ("token_stride", c_int64),
        ("row_stride", c_int64),
        *((n, c_void_p) for n in ("x", "gate_x", "gate_a", "branch", "y", "decay", "state_in", "state_out")),
        *((n, c_void_p) for n in ("position", "lengths", "active", "slots", "workspace")),
        ("workspace_bytes", c_int64),
    )


class Conv4(ctypes.Structure):
    """``speechssm_conv4``: the causal convolution of width 4."""

    _fields_ = (
        ("struct_bytes", c_uint64),
        *((n, c_int32) for n in ("dtype", "tokens", "rows", "width", "slot_count", "reserved")),
        ("token_stride", c_int64),
        ("row_stride", c_int64),
        *((n, c_void_p) for n in ("u", "y", "weight", "bias", "state_in", "state_out")),
        *((n, c_void_p) for n in ("position", "lengths", "active", "slots")),
    )


class Ring(ctypes.Structure):
    """``speechssm_ring``: attention over the last w keys and itself, then the append."""

    _fields_ = (
        ("struct_bytes", c_uint64),
        *((n, c_int32) for n in ("dtype", "ring_dtype", "tokens", "rows", "heads", "kv_heads", "head_dim")),
        *((n, c_int32) for n in ("window", "slot_count", "pieces")),
        ("token_stride", c_int64),
        ("row_stride", c_int64),
        *((n, c_void_p) for n in ("q", "k", "v", "y", "check", "key_in", "value_in", "key_out", "value_out")),
        *((n, c_void_p) for n in ("key_scale_in", "value_scale_in", "key_scale_out", "value_scale_out")),
        *((n, c_void_p) for n in ("position", "lengths", "active", "slots", "workspace")),
        ("workspace_bytes", c_int64),
    )


class Linear(ctypes.Structure):
    """``speechssm_linear``: a linear layer with the norm before it and what follows it."""

    _fields_ = (
        ("struct_bytes", c_uint64),
        *((n, c_int32) for n in ("rows", "fan_in", "fan_out", "stored", "activation")),
        ("epsilon", c_float),
        ("x_stride", c_int64),
        ("y_stride", c_int64),
        *(
            (n, c_void_p)
            for n in ("x", "norm", "weight", "scale", "bias", "times", "times_scale", "times_bias")
        ),
        *((n, c_void_p) for n in ("residual", "y", "workspace")),
        ("workspace_bytes", c_int64),
    )


class Sample(ctypes.Structure):
    """``speechssm_sample``: one token a row from logits, settings and a uniform number."""

    _fields_ = (
        ("struct_bytes", c_uint64),
        *((n, c_int32) for n in ("rows", "vocab", "k_max", "reserved")),
        *((n, c_void_p) for n in ("logits", "temperature", "top_k", "top_p", "uniform")),
        *((n, c_void_p) for n in ("token", "logprob", "finite", "workspace")),
        ("workspace_bytes", c_int64),
    )


class CudaLibrary:
    """``libspeechssm_cuda``. Every method enqueues on ``stream`` (an address) and returns at once."""

    def __init__(self, path: Path) -> None:
        lib = ctypes.CDLL(str(path))
        lib.speechssm_status_text.restype = ctypes.c_char_p
        lib.speechssm_rglru_workspace_bytes.restype = c_int64
        lib.speechssm_rglru_step_cuda.argtypes = [c_void_p, c_int32, c_void_p]
        lib.speechssm_rglru_scan_cuda.argtypes = [c_void_p, c_int32, c_void_p]
        lib.speechssm_conv4_cuda.argtypes = [c_void_p, c_void_p]
        lib.speechssm_ring_workspace_bytes.restype = c_int64
        lib.speechssm_ring_cuda.argtypes = [c_void_p, c_int32, c_void_p]
        self.lib = lib

    def step(self, call: RGLRU, stream: int, version: int = 0) -> None:
        """One token for each row. Raises RuntimeError with the library's sentence."""
        self._checked(self.lib.speechssm_rglru_step_cuda(ctypes.addressof(call), version, stream))

    def scan(self, call: RGLRU, stream: int, version: int = 0) -> None:
        """A chunk. Raises RuntimeError with the library's sentence."""
        self._checked(self.lib.speechssm_rglru_scan_cuda(ctypes.addressof(call), version, stream))

    def conv4(self, call: Conv4, stream: int) -> None:
        """The convolution. Raises RuntimeError with the library's sentence."""
        self._checked(self.lib.speechssm_conv4_cuda(ctypes.addressof(call), stream))

    def ring(self, call: Ring, stream: int, version: int = 0) -> None:
        """Attention over the ring, and the append. Raises RuntimeError with the library's sentence."""
        self._checked(self.lib.speechssm_ring_cuda(ctypes.addressof(call), version, stream))

    def ring_pieces(self, window: int) -> int:
        """Pieces that suit a ring of ``window`` slots."""
        return int(self.lib.speechssm_ring_pieces(window))

    def ring_workspace_bytes(self, rows: int, heads: int, head_dim: int, pieces: int) -> int:
        """Bytes a step in ``pieces`` needs."""
        return int(self.lib.speechssm_ring_workspace_bytes(rows, heads, head_dim, pieces))

    def workspace_bytes(self, tokens: int, rows: int, width: int, chunk: int) -> int:
        """Bytes a scan of version 1 needs."""
        return int(self.lib.speechssm_rglru_workspace_bytes(tokens, rows, width, chunk))

    def _checked(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self.lib.speechssm_status_text(status).decode())

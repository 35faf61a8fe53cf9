"""One step of the attention ring on random torch tensors: what the timings run on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechssm.cpp_ext.native import BF16, F16, F32, I8, CudaLibrary, Ring

TYPES = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16, torch.int8: I8}


@dataclass
class RingCase:
    """q (b,h,k), k and v (b,g,k), rings (b,w,g,k) written in place, their scales (b,w,g) or None, position (b)."""

    q: Tensor
    k: Tensor
    v: Tensor
    key: Tensor
    value: Tensor
    key_scale: Tensor | None
    value_scale: Tensor | None
    position: Tensor
    y: Tensor = field(init=False)
    workspace: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.y = torch.full_like(self.q, float("nan"))

    @property
    def floor_bytes(self) -> int:
        """Both rings read once."""
        scales = 0 if self.key_scale is None else 2 * self.key_scale.numel() * 4
        return 2 * self.key.numel() * self.key.element_size() + scales

    def call(self, library: CudaLibrary, pieces: int = 0) -> Ring:
        """The filled struct; with ``pieces`` also a workspace. Tensors stay alive as long as this case does."""
        rows, heads, dim = self.q.shape
        call = Ring(struct_bytes=ctypes.sizeof(Ring), dtype=TYPES[self.q.dtype], tokens=1, rows=rows)
        call.ring_dtype, call.heads, call.kv_heads, call.head_dim = (
            TYPES[self.key.dtype], heads, self.k.shape[1], dim,
        )  # fmt: skip
        call.window, call.slot_count, call.token_stride, call.row_stride = self.key.shape[1], rows, rows, 1
        if pieces > 1:
            size = library.ring_workspace_bytes(rows, heads, dim, pieces)
            self.workspace = torch.empty(size, dtype=torch.uint8, device=self.q.device)
            call.pieces, call.workspace_bytes, call.workspace = pieces, size, self.workspace.data_ptr()
        for name, tensor in (("q", self.q), ("k", self.k), ("v", self.v), ("y", self.y)):
            setattr(call, name, tensor.data_ptr())
        rings = ("key", self.key), ("value", self.value)
        scales = ("key_scale", self.key_scale), ("value_scale", self.value_scale)
        for name, ring in (*rings, *scales):
            if ring is not None:
                setattr(call, f"{name}_in", ring.data_ptr())
                setattr(call, f"{name}_out", ring.data_ptr())
        call.position = self.position.data_ptr()
        return call


def random_ring(rows: int, heads: int, kv_heads: int, dim: int, window: int, ring: torch.dtype) -> RingCase:
    """A step of float32 streams past the window."""
    q, k, v = (torch.randn(rows, n, dim, device="cuda") * dim**-0.25 for n in (heads, kv_heads, kv_heads))
    shape = (rows, window, kv_heads, dim)
    if ring == torch.int8:
        key, value = (torch.randint(-127, 128, shape, dtype=ring, device="cuda") for _ in range(2))
        key_scale, value_scale = (torch.full(shape[:3], 0.01, device="cuda") for _ in range(2))
        scales: tuple[Tensor | None, Tensor | None] = (key_scale, value_scale)
    else:
        key, value = (torch.randn(shape, device="cuda", dtype=ring) for _ in range(2))
        scales = (None, None)
    position = torch.full((rows,), 3 * window, dtype=torch.int64, device="cuda")
    return RingCase(q, k, v, key, value, *scales, position)


def torch_attend(case: RingCase) -> Tensor:
    """The same attention by scaled_dot_product_attention over a ring laid out for it, without append or self."""
    key, value = case.key.transpose(1, 2), case.value.transpose(1, 2)
    grouped = case.q[:, :, None].to(key.dtype)
    return torch.nn.functional.scaled_dot_product_attention(grouped, key, value, scale=1.0, enable_gqa=True)

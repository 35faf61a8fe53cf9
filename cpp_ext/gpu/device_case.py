"""One call of the device kernels on torch tensors, outputs poisoned before every run."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechssm.cpp_ext.native import BF16, F16, F32, RGLRU, CudaLibrary

DTYPES = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}


@dataclass
class DeviceCase:
    """x, gates, optional branch (t,b,e); decay (e); state (slot,e); position, lengths, active, slots (b)."""

    x: Tensor
    gate_x: Tensor
    gate_a: Tensor
    decay: Tensor
    state: Tensor
    position: Tensor
    lengths: Tensor | None = None
    active: Tensor | None = None
    slots: Tensor | None = None
    branch: Tensor | None = None
    in_place: bool = False
    chunk: int = 0
    y: Tensor = field(init=False)
    state_out: Tensor = field(init=False)
    workspace: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.y = torch.full_like(self.x, float("nan"))
        self.state_out = self.state if self.in_place else torch.full_like(self.state, float("nan"))

    def call(self, library: CudaLibrary) -> RGLRU:
        """The filled struct. Tensors stay alive as long as this case does."""
        tokens, rows, width = self.x.shape
        call = RGLRU(struct_bytes=ctypes.sizeof(RGLRU), dtype=DTYPES[self.x.dtype])
        call.tokens, call.rows, call.width, call.slot_count = tokens, rows, width, len(self.state)
        call.token_stride, call.row_stride = rows * width, width
        if self.chunk:
            size = library.workspace_bytes(tokens, rows, width, self.chunk)
            self.workspace = torch.full((size,), 255, dtype=torch.uint8, device=self.x.device)
            call.chunk, call.workspace_bytes = self.chunk, size
        tensors = {
            "x": self.x, "gate_x": self.gate_x, "gate_a": self.gate_a, "branch": self.branch, "y": self.y,
            "decay": self.decay, "state_in": self.state, "state_out": self.state_out,
            "position": self.position, "lengths": self.lengths, "active": self.active, "slots": self.slots,
            "workspace": self.workspace,
        }  # fmt: skip
        for name, tensor in tensors.items():
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        return call


def random_case(tokens: int, rows: int, width: int, dtype: torch.dtype, *, chunk: int = 0) -> DeviceCase:
    """Fresh random inputs on the device, with the decays of the published initialisation."""
    shape = (tokens, rows, width)
    x, gate_x, gate_a = (torch.randn(shape, device="cuda").to(dtype) for _ in range(3))
    radius = torch.empty(width, device="cuda").uniform_(0.9**2, 0.999**2).sqrt()
    state = torch.randn(rows, width, device="cuda")
    position = torch.ones(rows, dtype=torch.int64, device="cuda")
    return DeviceCase(x, gate_x, gate_a, 8 * radius.log(), state, position, chunk=chunk)

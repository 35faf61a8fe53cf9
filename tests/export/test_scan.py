"""The training scan against the recurrence written as a loop."""

from __future__ import annotations

import pytest
import torch

from speechssm.export.models.scan import linear_scan


@pytest.mark.parametrize("t", [1, 2, 3, 5, 16, 17, 101])
def test_the_scan_equals_the_loop_and_so_do_its_gradients(t: int) -> None:
    a = torch.rand(2, t, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, t, 3, dtype=torch.float64, requires_grad=True)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for i in range(t):
        h = a[:, i] * h + x[:, i]
        expected.append(h)
    loop, scan = torch.stack(expected, 1), linear_scan(a, x)
    torch.testing.assert_close(scan, loop, rtol=0, atol=1e-13)
    slope = torch.randn_like(loop)
    for by_scan, by_loop in zip(
        torch.autograd.grad(scan, (a, x), slope), torch.autograd.grad(loop, (a, x), slope), strict=True
    ):
        torch.testing.assert_close(by_scan, by_loop, rtol=0, atol=1e-12)

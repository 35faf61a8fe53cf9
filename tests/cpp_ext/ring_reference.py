"""The attention ring in float64, token by token, exactly as its equations read (facts: paper section 2.4)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

TINY = np.float32(1e-30)
RINGS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (...,k) float32 as int8 and their scales (...), in the float32 steps of the exported graphs."""
    scale = np.maximum(np.abs(x).max(-1), TINY) * np.float32(1 / 127)
    return np.rint(x / scale[..., None]).astype(np.int8), scale


def append(ring: dict[str, np.ndarray], what: str, slot: int, s: int, x: np.ndarray) -> None:
    """Put ``x`` (g,k) into slot s of one row's ring, as that ring keeps numbers."""
    if ring[what].dtype == np.int8:
        ring[what][slot, s], ring[f"{what}_scale"][slot, s] = quantized(x.astype(np.float32))
    else:
        ring[what][slot, s] = x.astype(np.float32).astype(ring[what].dtype)


def wide(ring: dict[str, np.ndarray], what: str, slot: int, slots: np.ndarray | slice) -> np.ndarray:
    """Numbers (s,g,k) of some slots in float64."""
    numbers = ring[what][slot, slots].astype(np.float64)
    return numbers * ring[f"{what}_scale"][slot, slots][..., None] if f"{what}_scale" in ring else numbers


def attend(case: dict[str, Any], lengths=None, active=None, slots=None, appends=True):
    """Case of :func:`random_case` -> y (t,b,h,k) float64, check (b), and the rings after it."""
    q, k, v, position = (case[n] for n in ("q", "k", "v", "position"))
    tokens, rows, heads, dim = q.shape
    kv_heads, window, pool = k.shape[2], case["key"].shape[1], len(case["key"])
    ring = {n: a.copy() for n, a in case.items() if n in ("key", "value", "key_scale", "value_scale")}
    y, check = np.zeros(q.shape), np.zeros(rows)
    for b in range(rows):
        slot = b if slots is None else int(slots[b])
        if not 0 <= slot < pool or position[b] < 0 or (active is not None and not active[b]):
            continue
        for t in range(tokens if lengths is None else min(max(int(lengths[b]), 0), tokens)):
            p = int(position[b]) + t
            filled = slice(0, min(p, window))
            own_k, own_v = k[t, b].astype(np.float64), v[t, b].astype(np.float64)
            keys = np.concatenate([wide(ring, "key", slot, filled), own_k[None]])
            values = np.concatenate([wide(ring, "value", slot, filled), own_v[None]])
            groups = q[t, b].astype(np.float64).reshape(kv_heads, heads // kv_heads, dim)
            scores = np.einsum("ghk,sgk->ghs", groups, keys)
            with np.errstate(all="ignore"):
                weight = np.exp(scores - scores.max(-1, keepdims=True))
                y[t, b] = np.einsum("ghs,sgk->ghk", weight / weight.sum(-1, keepdims=True), values).reshape(
                    heads, dim
                )
                check[b] += sum(float((0 * a).sum()) for a in (scores, own_k, own_v, y[t, b]))
            if appends:
                append(ring, "key", slot, p % window, k[t, b])
                append(ring, "value", slot, p % window, v[t, b])
    return y, check, ring


def random_case(
    rng: np.random.Generator,
    tokens: int,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int,
    *,
    pool: int | None = None,
    dtype: Any = np.float32,
    ring: str = "float32",
    spread: float = 1.0,
) -> dict[str, Any]:
    """Inputs whose scores have standard deviation ``spread``; rings full of other tokens' keys."""
    q = spread * dim**-0.5 * rng.standard_normal((tokens, rows, heads, dim))
    case = {"q": q.astype(np.float32).astype(dtype)}
    case |= {
        n: rng.standard_normal((tokens, rows, kv_heads, dim)).astype(np.float32).astype(dtype)
        for n in ("k", "v")
    }
    for what in ("key", "value"):
        numbers = rng.standard_normal((pool or rows, window, kv_heads, dim)).astype(np.float32)
        if ring == "int8":
            case[what], case[f"{what}_scale"] = quantized(numbers)
        else:
            case[what] = numbers.astype(RINGS[ring])
    case["position"] = rng.integers(0, 3 * window, rows)
    return case


NORMWISE = 5e-7
ELEMENTWISE = 1e-6


def assert_close(got: np.ndarray, want: np.ndarray, slack: float = 0.0) -> None:
    """Error of y norm-wise, and the largest over the largest value; ``slack`` is half a two-byte spacing.

    Scores are sums of k products in float32, whose rounding grows like the root of k; y is a mean of values of
    order one, and rounds relative to them even where they cancel.
    """
    assert np.isfinite(got.astype(np.float64)).all()
    error = np.abs(got.astype(np.float64) - want)
    size = max(float(np.linalg.norm(want)), 0.25 * np.sqrt(want.size))
    reach = max(float(np.abs(want).max(initial=0)), 0.25)
    normwise, elementwise = (
        float(np.linalg.norm(error)) / max(size, 1e-30),
        float(error.max(initial=0)) / reach,
    )
    wide = max(1.0, np.sqrt(got.shape[-1] / 128))
    assert normwise <= NORMWISE * wide + slack, f"norm-wise error {normwise:.2e}"
    assert elementwise <= ELEMENTWISE * wide + slack, f"largest error {elementwise:.2e} of the range"

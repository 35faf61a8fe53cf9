"""The RG-LRU in float64, token by token, exactly as the paper's equations read (facts: paper section 2.3)."""

import numpy as np


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-v))


def rglru(x, gate_x, gate_a, decay, state, position, lengths=None, active=None, slots=None, branch=None):
    """x, gate_x, gate_a, branch (t,b,e); decay (e); state (slot,e); the rest (b). Returns y and state."""
    tokens, rows, _ = x.shape
    x, gate_x, gate_a, decay = (np.asarray(v, np.float64) for v in (x, gate_x, gate_a, decay))
    out = np.asarray(state, np.float64).copy()
    y = np.zeros(x.shape, np.float64)
    for b in range(rows):
        slot = b if slots is None else slots[b]
        if not 0 <= slot < len(out) or (active is not None and not active[b]):
            continue
        h = out[slot].copy()
        for t in range(tokens if lengths is None else min(max(lengths[b], 0), tokens)):
            drive = sigmoid(gate_x[t, b]) * x[t, b]
            if position[b] + t == 0:
                h = drive
            else:
                log_a = sigmoid(gate_a[t, b]) * decay
                h = np.exp(log_a) * h + np.sqrt(-np.expm1(2 * log_a)) * drive
            y[t, b] = h if branch is None else h * np.asarray(branch[t, b], np.float64)
        out[slot] = h
    return y, out


def conv4(u, weight, bias, state, position, lengths=None, active=None, slots=None):
    """u (t,b,e); weight (4,e), row 3 the current tap; bias (e); state (slot,3,e), oldest first."""
    tokens, rows, width = u.shape
    out = np.asarray(state, np.float64).copy()
    y = np.zeros(u.shape, np.float64)
    for b in range(rows):
        slot = b if slots is None else slots[b]
        if not 0 <= slot < len(out) or (active is not None and not active[b]):
            continue
        past = out[slot].copy()
        for t in range(tokens if lengths is None else min(max(lengths[b], 0), tokens)):
            if position[b] + t == 0:
                past = np.zeros((3, width))
            window = np.concatenate([past, np.asarray(u[t, b], np.float64)[None]])
            y[t, b] = (window * np.asarray(weight, np.float64)).sum(0) + (0 if bias is None else bias)
            past = window[1:]
        out[slot] = past
    return y, out


def random_case(
    rng: np.random.Generator, tokens: int, rows: int, width: int, slot_count: int | None = None
) -> dict:
    """Inputs with the spread of a trained model: decays from the published initialisation."""
    radius = np.sqrt(rng.uniform(0.9**2, 0.999**2, width))
    return {
        "x": rng.standard_normal((tokens, rows, width)).astype(np.float32),
        "gate_x": (2 * rng.standard_normal((tokens, rows, width))).astype(np.float32),
        "gate_a": (2 * rng.standard_normal((tokens, rows, width))).astype(np.float32),
        "decay": (8 * np.log(radius)).astype(np.float32),  # -8 softplus(Lambda): a = radius^8 at r = 1
        "state": rng.standard_normal((slot_count or rows, width)).astype(np.float32),
        "position": rng.integers(1, 1000, rows),
    }


NORMWISE = 5e-7
ELEMENTWISE = 1e-6


def errors(got: np.ndarray, want: np.ndarray, *travelled: np.ndarray) -> tuple[float, float]:
    """Norm-wise error, and the largest error over the range of values; NaN or infinity is infinitely wrong.

    ``travelled`` holds what else the state was on its way: the state before the call and, for a final
    state, all of y. It counts into both scales, because h = a h + b may cancel to almost nothing, and then
    no float32 arithmetic has a small error relative to the result alone.
    """
    if not np.isfinite(got).all():
        return float("inf"), float("inf")
    error = np.abs(np.asarray(got, np.float64) - want)
    values = np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in (want, *travelled)])
    values = values[np.isfinite(values)]
    size, reach = np.linalg.norm(values), np.abs(values).max(initial=0)
    return float(np.linalg.norm(error) / max(size, 1e-30)), float(error.max(initial=0) / max(reach, 1e-30))


def assert_close(got, want, *travelled, slack: float = 0.0) -> None:
    """Both errors within bounds; ``slack`` is half the spacing of a two-byte output."""
    normwise, elementwise = errors(got, want, *travelled)
    assert normwise <= NORMWISE + slack, f"norm-wise error {normwise:.2e}"
    assert elementwise <= ELEMENTWISE + slack, f"largest error {elementwise:.2e} of the range"

"""Settings no session may have: loops for ever, giant windows, samplers that keep nothing, seeds that are none."""

import pytest

from .attack import HostileSnapshot

BENDS: list[tuple[str, object]] = [
    ("sampler.temperature", float("nan")), ("sampler.temperature", -1.0), ("sampler.temperature", 1e300),
    ("sampler.top_k", 1 << 40), ("sampler.top_k", -1), ("sampler.top_p", 0.0), ("sampler.top_p", 2.0),
    ("windows.window", 1 << 40), ("windows.window", 0), ("windows.overlap", 750), ("windows.window", 60),
    ("windows.ramp", "yes"), ("acoustic.iterations", [10**9]), ("acoustic.iterations", []),
    ("acoustic.iterations", [1] * 1000), ("acoustic.iterations", [0]), ("acoustic.iterations", "16"),
    ("acoustic.annealing", "x" * 10_000), ("acoustic.temperature", float("inf")), ("seed", -1), ("seed", 1 << 64),
    ("seed", 1.5), ("asked", -2), ("asked", 1 << 62), ("drawn", -1), ("position", 1 << 40), ("samples", 1 << 70),
    ("window_calls", -1), ("tokens", "1"), ("sampler", None), ("windows", []), ("acoustic", 1),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value"), BENDS)
def test_refused(snapshot: HostileSnapshot, where: str, value: object) -> None:
    table = snapshot.session
    *groups, key = where.split(".")
    for group in groups:
        table = table[group]
    table[key] = value
    snapshot.is_refused("snapshot")


@pytest.mark.parametrize("key", ["custom_ops", "\x1b[2J"])
def test_unknown_key(snapshot: HostileSnapshot, key: str) -> None:
    snapshot.session["sampler"][key] = "/tmp/evil.so"
    snapshot.is_refused("sampler.")

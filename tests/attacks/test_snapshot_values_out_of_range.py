"""Tokens, codes and positions that index outside the model's tables."""

import pytest

from .attack import HostileSnapshot

BENDS = [
    ("tokens.tail", 64), ("tokens.tail", -1), ("tokens.head", 1 << 62), ("voice.tokens", 64), ("voice.tokens", -5),
    ("voice.codes", 32), ("voice.codes", -1), ("tail.pending", 32), ("tail.pending", -(1 << 62)),
    ("stitch.place", -1), ("stitch.place", 1 << 62), ("tokens.start", -1), ("tokens.start", 1 << 62),
    ("lm.position", -1), ("lm.position", 1 << 40), ("lm.position", 0), ("stitch.codes", 32), ("stitch.codes", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BENDS)
def test_refused(snapshot: HostileSnapshot, name: str, value: int) -> None:
    if not snapshot.arrays[name].size:
        pytest.skip(f"{name} is empty at this moment of the stream")
    snapshot.arrays[name].reshape(-1)[-1] = value
    snapshot.is_refused("snapshot")


@pytest.mark.parametrize("token", [64, -1, 1 << 62, 10**30, 1.5, "1", None, True])
def test_next_token(snapshot: HostileSnapshot, token: object) -> None:
    snapshot.session["token"] = token
    snapshot.is_refused("")

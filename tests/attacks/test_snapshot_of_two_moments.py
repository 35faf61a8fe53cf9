"""Parts that are each sound but not of one moment: plans and buffers would disagree in mid-stream."""

import numpy as np
import pytest

from .attack import HostileSnapshot


@pytest.mark.parametrize("key", ["drawn", "position", "tokens", "samples"])
@pytest.mark.parametrize("by", [1, -1, 640])
def test_counts(snapshot: HostileSnapshot, key: str, by: int) -> None:
    snapshot.session[key] += by
    snapshot.is_refused("not of one moment")


@pytest.mark.parametrize("name", ["tokens.tail", "tail.held", "stitch.codes"])
def test_lengths(snapshot: HostileSnapshot, name: str) -> None:
    array = snapshot.arrays[name]
    snapshot.set(name, np.concatenate([array, np.zeros((*array.shape[:-1], 2), array.dtype)], axis=-1))
    snapshot.is_refused("snapshot")


def test_dropped_tokens(snapshot: HostileSnapshot) -> None:
    """Tokens that a later window still reads are gone: the stream's beginning claims to be later."""
    tail = snapshot.arrays["tokens.tail"]
    snapshot.arrays["tokens.start"][0] = 10
    snapshot.set("tokens.tail", tail[10:].copy())
    snapshot.is_refused("not of one moment")

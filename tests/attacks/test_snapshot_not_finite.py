"""NaN and infinity in any float tensor: the session would speak noise from its first step, or its fiftieth."""

import numpy as np
import pytest

from .attack import HostileSnapshot


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refused(snapshot: HostileSnapshot, value: float, rng: np.random.Generator) -> None:
    floats = [name for name, array in snapshot.arrays.items() if array.dtype.kind == "f" and array.size]
    assert {"lm.L00_lru", "lm.L00_conv", "lm.L02_key", "lm.L02_value"} <= set(floats)
    for name in floats:
        flat = snapshot.arrays[name].reshape(-1)
        place = int(rng.integers(flat.size))
        true, flat[place] = flat[place], value
        snapshot.is_refused(f"tensor {name} of the snapshot is not finite")
        flat[place] = true
    snapshot.model.restore(snapshot.write())

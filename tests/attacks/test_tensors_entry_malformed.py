"""Tensors described wrongly: unknown types, sizes that are not whole, keys that are missing or too many."""

import pytest

from .attack import HostileBundle, safetensors_file

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BENDS: list[dict[str, object]] = [
    {"dtype": "F33"}, {"dtype": 1}, {"dtype": []}, {"dtype": {}}, {"dtype": None}, {"shape": "2"}, {"shape": 2},
    {"shape": [2.0]}, {"shape": [True, 2]}, {"shape": [-2]}, {"shape": [1] * 9 + [2]}, {"shape": {"2": 2}},
    {"shape": [10**4000]}, {"data_offsets": [0]}, {"data_offsets": [0, 8, 8]}, {"data_offsets": "08"},
    {"data_offsets": [8, 0]}, {"data_offsets": [-8, 0]}, {"data_offsets": [0, 10**4000]}, {"data_offsets": None},
    {"data_offsets": [10**4000, 10**4000 + 8]}, {"extra": 1},
]  # fmt: skip


@pytest.mark.parametrize("bend", BENDS, ids=lambda bend: str(bend)[:40])
def test_refused(bundle: HostileBundle, bend: dict[str, object]) -> None:
    bundle.put("lm.safetensors", safetensors_file({"w": {**GOOD, **bend}}, bytes(8)))
    bundle.is_refused("tensor w")


@pytest.mark.parametrize("key", GOOD)
def test_key_missing(bundle: HostileBundle, key: str) -> None:
    entry = {k: v for k, v in GOOD.items() if k != key}
    bundle.put("lm.safetensors", safetensors_file({"w": entry}, bytes(8)))
    bundle.is_refused("tensor w")

"""A state tensor of a terabyte, of a negative size, of none, or given twice."""

import pytest

from .attack import HostileBundle, Table


@pytest.mark.parametrize("size", [1 << 38, 1 << 62, 10**40, -1, 0])
def test_refused(bundle: HostileBundle, size: int) -> None:
    def change(table: Table) -> None:
        for graph in ("lm_step", "lm_chunk"):
            entry = table["graphs"][graph]
            name = next(s["name"] for s in entry["state"] if s["kind"] == "lru")
            next(s for s in entry["state"] if s["name"] == name)["shape"] = [size]
            for value in (*entry["inputs"], *entry["outputs"]):
                if value["name"] in (f"in_{name}", f"out_{name}"):
                    value["axes"] = ["b", size]

    bundle.edit(change)
    bundle.is_refused("is not a valid manifest")


def test_twice(bundle: HostileBundle) -> None:
    def change(table: Table) -> None:
        for graph in ("lm_step", "lm_chunk"):
            table["graphs"][graph]["state"] *= 2

    bundle.edit(change)
    bundle.is_refused("a state tensor appears twice")

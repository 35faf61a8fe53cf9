"""Sizes that would make the host allocate more than there is, before a graph is even opened."""

import pytest

from .attack import HostileBundle, Table


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("lm", "shape", "vocab"), 10**30),
        (("lm", "shape", "mlp_width"), 1 << 25),
        (("lm", "shape", "vocab"), 0),
        (("lm", "k_max"), 1 << 40),
        (("acoustic", "shape", "levels"), 1 << 20),
        (("codec", "shape", "codes"), 1 << 40),
        (("windows", "window_tokens"), 1 << 40),
        (("windows", "buckets"), [1 << 40]),
        (("windows", "buckets"), []),
        (("windows", "overlap_tokens"), 750),
        (("windows", "prefix_tokens"), 1 << 20),
    ],
)
def test_refused(bundle: HostileBundle, where: tuple[str, ...], value: object) -> None:
    def change(table: Table) -> None:
        for key in where[:-1]:
            table = table[key]
        table[where[-1]] = value

    bundle.edit(change)
    bundle.is_refused("is not a valid manifest")

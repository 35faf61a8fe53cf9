"""Step and chunk graphs that carry different states: one would read what the other did not write."""

from .attack import HostileBundle, Table


def test_refused(bundle: HostileBundle) -> None:
    def change(table: Table) -> None:
        entry = table["graphs"]["lm_chunk"]
        name = entry["state"].pop()["name"]
        for side in ("inputs", "outputs"):
            entry[side] = [v for v in entry[side] if not v["name"].endswith(f"_{name}")]

    bundle.edit(change)
    bundle.is_refused("different states")


def test_unpaired(bundle: HostileBundle) -> None:
    bundle.edit(lambda m: m["graphs"]["lm_step"]["inputs"].pop())
    bundle.is_refused("has no matching input and output")

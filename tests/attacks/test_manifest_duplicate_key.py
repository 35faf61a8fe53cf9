"""A key given twice: one reader takes the first, another the last."""

from .attack import HostileBundle


def test_refused(bundle: HostileBundle) -> None:
    text = bundle.path("manifest.json").read_text()
    bundle.path("manifest.json").write_text(text.replace('"seeded"', '"version": 1, "seeded"', 1))
    bundle.is_refused("a key appears twice")

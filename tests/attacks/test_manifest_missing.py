"""A folder without a table of contents."""

from .attack import HostileBundle


def test_refused(bundle: HostileBundle) -> None:
    bundle.path("manifest.json").unlink()
    bundle.is_refused("the bundle is incomplete")

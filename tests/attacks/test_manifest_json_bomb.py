"""JSON nested a hundred thousand deep, and a number of a million digits: parsers recurse and multiply."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"version":' * 100_000, '{"version": ' + "9" * 1_000_000 + "}"]
)
def test_refused(bundle: HostileBundle, content: str) -> None:
    bundle.path("manifest.json").write_text(content)
    bundle.is_refused("is not JSON")

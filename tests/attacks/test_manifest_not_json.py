"""A manifest that is not JSON: cut short, binary, empty, or a pickle."""

import pickle

import pytest

from .attack import HostileBundle


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle was run",))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x00" * 100, b"\xff\xfe{", pickle.dumps(Trap()), b"nul", b'"x"', b"[]", b"1"]
)
def test_refused(bundle: HostileBundle, content: bytes) -> None:
    bundle.path("manifest.json").write_bytes(content)
    bundle.is_refused("manifest.json is ")

"""More files than a bundle may list: each would be opened and hashed."""

from .attack import HostileBundle


def test_refused(bundle: HostileBundle) -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 0}
    bundle.edit(lambda m: m["files"].update({f"f{i}": entry for i in range(300)}))
    bundle.is_refused("more than 256 files")

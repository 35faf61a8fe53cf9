"""A file name that leads out of the folder, or means something to the system (CVE-2024-5187's shape)."""

import pytest

from .attack import HostileBundle, Table

NAMES = [
    "../secret",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "a\\b",
    "C:\\x",
    "x\x00",
    "x\n",
    "~root",
    "-x",
    "x" * 200,
    "con:",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_refused(bundle: HostileBundle, name: str, suffix: str) -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 0}

    def change(table: Table) -> None:
        table["files"][name + suffix] = entry
        table["graphs"]["lm_step"]["weights"] = [name + suffix]

    bundle.edit(change)
    bundle.is_refused("is not a valid manifest")

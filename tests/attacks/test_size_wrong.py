"""A file that was cut short or grew; a size that is a lie."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize("by", [-1, 1, 1 << 40])
def test_file(bundle: HostileBundle, by: int) -> None:
    with bundle.path("lm.safetensors").open("r+b") as file:
        file.truncate(bundle.path("lm.safetensors").stat().st_size + by)
    bundle.is_refused("copy the bundle again")


@pytest.mark.parametrize("size", [0, 1, 10**30, -1, "12", None])
def test_manifest(bundle: HostileBundle, size: object) -> None:
    bundle.edit(lambda m: m["files"]["lm.safetensors"].update(size_bytes=size))
    bundle.is_refused("lm.safetensors")

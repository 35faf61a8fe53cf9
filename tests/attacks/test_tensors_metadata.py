"""Metadata that is not a table of texts."""

import pytest

from .attack import HostileBundle, safetensors_file


@pytest.mark.parametrize("metadata", [[], 1, "x", None, {"a": 1}, {"a": {"b": "c"}}, {"a": None}])
def test_refused(bundle: HostileBundle, metadata: object) -> None:
    bundle.put("lm.safetensors", safetensors_file({"__metadata__": metadata}))
    bundle.is_refused("__metadata__")

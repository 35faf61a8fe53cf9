"""A graph whose file lies elsewhere: even with the right digest it is not the bundle's."""

import pytest

from .attack import HostileBundle, Table


@pytest.mark.parametrize("name", ["../lm_step.onnx", "/tmp/lm_step.onnx", "sub/lm_step.onnx"])
def test_refused(bundle: HostileBundle, name: str) -> None:
    def change(table: Table) -> None:
        table["files"][name] = table["files"].pop("lm_step.onnx")
        table["graphs"]["lm_step"]["file"] = name

    bundle.edit(change)
    bundle.is_refused("is not a valid manifest")

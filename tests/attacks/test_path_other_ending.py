"""A graph or weight file under another ending: ONNX Runtime opens .ort as a format nobody checked."""

import pytest

from .attack import HostileBundle, Table


@pytest.mark.parametrize("name", ["lm_step.ort", "lm_step", "lm_step.onnx.ort", "lm_step.so", "lm_step.ONNX"])
def test_graph(bundle: HostileBundle, name: str) -> None:
    bundle.path("lm_step.onnx").rename(bundle.path(name))

    def change(table: Table) -> None:
        table["files"][name] = table["files"].pop("lm_step.onnx")
        table["graphs"]["lm_step"]["file"] = name

    bundle.edit(change)
    bundle.is_refused("graphs.lm_step.file")


@pytest.mark.parametrize("name", ["manifest.json", "lm_step.onnx", "lm.pt", "lm.pkl", "lm.bin", "lm.npz"])
def test_weights(bundle: HostileBundle, name: str) -> None:
    bundle.edit(lambda m: m["graphs"]["lm_step"].update(weights=[name]))
    bundle.is_refused("graphs.lm_step.weights")

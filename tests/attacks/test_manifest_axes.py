"""Axes that are no axis: too many, negative, not a letter."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize(
    "axes", [["b"] * 9, ["b", -1], ["b", 1 << 40], ["b", "../x"], ["b", "\x1b"], ["b", 1.5], "b"]
)
def test_refused(bundle: HostileBundle, axes: object) -> None:
    bundle.edit(lambda m: m["graphs"]["lm_step"]["inputs"][0].update(axes=axes))
    bundle.is_refused("graphs.lm_step.inputs.0.axes")

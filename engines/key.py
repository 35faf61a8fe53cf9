"""What decides whether a built engine may be used again: everything it was built from and for.

Pure: no vendor library, no files. A key that lacks one of these fields is how engines of another GPU,
another plugin or yesterday's weights come to be loaded.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from speechssm.bundle.shapes import Shape

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Flavour = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]


class AxisRange(Shape):
    """Smallest, likeliest and largest size of one axis, which an engine is tuned for."""

    low: PositiveInt
    likely: PositiveInt
    high: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.likely <= self.high:
            raise ValueError(f"profile {self.low}, {self.likely}, {self.high} is not in ascending order")
        return self


class EngineKey(Shape):
    """Identity of one built engine."""

    graph: str
    """Name of the graph in the manifest."""
    graph_digest: Digest
    weight_digests: tuple[Digest, ...]
    flavour: Flavour
    flavour_version: str
    plugin_digest: Digest | None
    """Digest of the plugin library, None when the graph uses none."""
    architecture: str
    """``sm_90`` for one GPU, or the list of compute capabilities a portable engine was built for."""
    precision: Literal["float32", "float16", "bfloat16"]
    profiles: dict[str, AxisRange]
    """By axis letter: rows b, tokens t, frames f."""
    options: dict[str, str] = Field(default_factory=dict)

    def digest(self) -> str:
        """Name of the engine's folder in a cache."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]

    def differences(self, built: EngineKey) -> list[str]:
        """Why an engine with key ``built`` cannot serve for this one: a sentence a field, none if it can."""
        return [
            REASONS[name].format(built=_shown(getattr(built, name)), wanted=_shown(getattr(self, name)))
            for name in REASONS
            if getattr(built, name) != getattr(self, name)
        ]


REASONS = {
    "graph": "it is an engine of graph {built}, not of {wanted}",
    "graph_digest": "the graph changed since it was built (sha256 {built}, now {wanted})",
    "weight_digests": "the weights changed since it was built (sha256 {built}, now {wanted})",
    "flavour": "it was built by {built}, and {wanted} is to run it",
    "flavour_version": "it was built by version {built}, and version {wanted} is installed",
    "plugin_digest": "the plugin library changed since it was built (sha256 {built}, now {wanted})",
    "architecture": "it was built for {built}, and this GPU is {wanted}",
    "precision": "it was built in {built}, and {wanted} is asked for",
    "profiles": "it was tuned for {built}, and {wanted} is asked for",
    "options": "it was built with options {built}, and {wanted} are asked for",
}
"""A sentence for every field of the key, so that no difference goes unexplained."""


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    if isinstance(value, tuple):
        return ", ".join(_shown(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_shown(v)}" for k, v in sorted(value.items())) or "none"
    if isinstance(value, AxisRange):
        return f"{value.low}..{value.likely}..{value.high}"
    return "none" if value is None else str(value)

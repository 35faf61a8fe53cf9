"""Differences between the engine's numbers and the reference's, and the gates they must pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from speechssm.bundle.shapes import LMShape

from .rollout import Rollout


@dataclass(frozen=True)
class Gate:
    """What an export has to reach.

    ``state`` and ``logits`` bound the largest difference, in units of the tensor's largest magnitude
    where that is above 1; ``cosine`` is the least allowed between two state tensors; ``margin`` is how
    far, in probability, a sampled token may lie outside the reference's own choice. ``exact`` asks for
    equal bits wherever the graphs claim them.
    """

    state: float
    logits: float
    cosine: float
    margin: float
    exact: bool


FLOAT_GATE = Gate(state=1e-3, logits=1e-3, cosine=1 - 1e-5, margin=1e-3, exact=True)
"""The maths is float32 whatever the weights are stored as, and the reference has the stored weights."""


GATES: dict[str, Gate] = {
    **dict.fromkeys(("float32", "float16", "bfloat16"), FLOAT_GATE),
    # 8-bit activations: a rounding that falls the other way moves a number by 1/127 of its row.
    "dynamic_int8": Gate(state=0.15, logits=0.15, cosine=0.99, margin=0.1, exact=True),
    "int8": Gate(state=0.15, logits=0.15, cosine=0.99, margin=0.1, exact=False),
    "int4": Gate(state=0.15, logits=0.15, cosine=0.99, margin=0.1, exact=False),
    "qdq_int8": Gate(state=0.2, logits=0.2, cosine=0.98, margin=0.15, exact=False),
    # Three bits of mantissa in every activation: a sixteenth of each number.
    "qdq_fp8": Gate(state=0.4, logits=0.4, cosine=0.95, margin=0.3, exact=False),
}
"""By storage."""
RING_STEPS = {"float32": 0.0, "float16": 2e-3, "int8": 2e-2}
"""What a gate adds for a narrow ring: a rounding that falls the other way is a step of 2^-11 or 1/127 of a key."""


def gate_of(storage: str, ring: str) -> Gate:
    """The gate of a bundle whose weights and attention rings are stored so."""
    gate, more = GATES[storage], RING_STEPS[ring]
    return replace(
        gate, state=gate.state + more, logits=gate.logits + more, margin=gate.margin + more,
        cosine=gate.cosine - more**2,
    )  # fmt: skip


@dataclass
class Difference:
    """The worst seen of one thing over a rollout."""

    largest: float = 0.0
    scaled: float = 0.0
    cosine: float = 1.0
    step: int = 0
    """Where ``scaled`` is worst."""

    def add(self, step: int, engine: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
        """Take in one pair (b, ...); returns its scaled difference and its least cosine."""
        scaled, largest = spread(engine, reference)
        cosine = least_cosine(engine, reference)
        if not scaled <= self.scaled:
            self.scaled, self.step = scaled, step
        self.largest = largest if not largest <= self.largest else self.largest
        self.cosine = cosine if not cosine >= self.cosine else self.cosine
        return scaled, cosine

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "largest": self.largest,
            "scaled": self.scaled,
            "cosine": self.cosine,
            "worst_step": self.step,
        }


def spread(engine: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest difference, scaled and as it is; NaN or infinity in the engine's numbers counts as infinite."""
    if engine.size == 0:
        return 0.0, 0.0
    difference = float(np.max(np.abs(engine.astype(np.float64) - reference)))
    if not np.isfinite(difference):
        return float("inf"), float("inf")
    return difference / max(1.0, float(np.max(np.abs(reference)))), difference


def least_cosine(engine: np.ndarray, reference: np.ndarray) -> float:
    """Least cosine over the rows of two (b, ...) arrays; two zeros agree."""
    a = engine.reshape(len(engine), -1).astype(np.float64)
    b = reference.reshape(len(reference), -1).astype(np.float64)
    if not np.isfinite(a).all():
        return -1.0
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(1)
    nothing = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
    return float(np.where(nothing, 1.0, dots / np.where(norms > 0, norms, 1.0)).min(initial=1.0))


@dataclass
class Comparison:
    """Collects the reference's numbers as they come and holds them against a rollout."""

    shape: LMShape
    rollout: Rollout
    states: dict[str, Difference] = field(default_factory=dict)
    curve: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    """Scaled difference and cosine by step count and layer."""
    logits: Difference = field(default_factory=Difference)
    logprob: Difference = field(default_factory=Difference)
    divergences: list[int] = field(default_factory=list)
    """Steps at which the reference, given the same past and the same uniform number, samples another token."""
    largest_margin: float = 0.0

    def on_state(self, steps: int, name: str, value: np.ndarray) -> None:
        """One state tensor (b, ...) of the reference after ``steps`` steps."""
        mine = self.rollout.states[steps][name]
        if (scale := self.rollout.states[steps].get(f"{name}_scale")) is not None:
            mine = mine * scale[..., None]
        if name.endswith(("_key", "_value")):
            # Slots that no token has reached hold whatever the slot held before.
            filled = min(steps, self.shape.window)
            mine, value = mine[:, :filled], value[:, :filled]
        scaled, cosine = self.states.setdefault(name, Difference()).add(steps, mine, value)
        point = self.curve.setdefault(steps, {}).setdefault(name.split("_")[0], [0.0, 1.0])
        point[0], point[1] = max(point[0], scaled), min(point[1], cosine)

    def on_logits(self, start: int, logits: np.ndarray) -> None:
        """The reference's logits (b,t,v) from step ``start`` on."""
        run, steps = self.rollout, logits.shape[1]
        inside = (run.logit_steps >= start) & (run.logit_steps < start + steps)
        for column, step in zip(np.flatnonzero(inside), run.logit_steps[inside], strict=True):
            self.logits.add(int(step), run.logits[:, column], logits[:, step - start])
        chosen = run.tokens[:, start + 1 : start + steps + 1]
        inside_vocab = (chosen >= 0) & (chosen < self.shape.vocab)
        index = np.where(inside_vocab, chosen, 0)[..., None]
        weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        upper = np.cumsum(weights, -1)
        probability = np.take_along_axis(weights, index, -1)
        self.logprob.add(start, run.logprobs[:, start : start + steps, None], np.log(probability))
        top = np.take_along_axis(upper, index, -1)[..., 0]
        below = top - probability[..., 0]
        uniform = run.uniforms[:, start : start + steps].astype(np.float64)
        margin = np.maximum(np.maximum(below - uniform, uniform - top), 0.0)
        margin = np.where(inside_vocab, margin, 1.0)
        self.largest_margin = max(self.largest_margin, float(margin.max()))
        self.divergences += sorted({int(start + t) for t in np.nonzero(margin.max(0))[0]})

    def failures(self, gate: Gate) -> list[str]:
        """One sentence for each gate that is missed."""
        missed = []
        for name, difference in sorted(self.states.items()):
            if not difference.scaled <= gate.state or not difference.cosine >= gate.cosine:
                missed.append(
                    f"state {name} differs by {difference.scaled:.2e} (cosine {difference.cosine:.6f}) after "
                    f"{difference.step} steps, allowed are {gate.state:.0e} and {gate.cosine:.6f}"
                )
        for name, difference in (("logits", self.logits), ("log-probabilities", self.logprob)):
            if not difference.scaled <= gate.logits:
                missed.append(
                    f"{name} differ by {difference.scaled:.2e} at step {difference.step}, "
                    f"allowed is {gate.logits:.0e}"
                )
        if not self.largest_margin <= gate.margin:
            missed.append(
                f"a sampled token lies {self.largest_margin:.2e} in probability from the reference's choice, "
                f"allowed is {gate.margin:.0e}"
            )
        return missed

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "largest_state_difference": max((d.largest for d in self.states.values()), default=0.0),
            "states": {name: d.report() for name, d in sorted(self.states.items())},
            "logits": self.logits.report(),
            "logprob": self.logprob.report(),
            "curve": [
                {
                    "steps": steps,
                    "layers": {k: {"scaled": s, "cosine": c} for k, (s, c) in sorted(at.items())},
                }
                for steps, at in sorted(self.curve.items())
            ],
            "free_running": {
                "first_divergence": self.divergences[0] if self.divergences else None,
                "divergences": len(self.divergences),
                "largest_margin": self.largest_margin,
            },
        }

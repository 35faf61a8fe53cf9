"""The model card every bundle carries: what it is, what it was checked for, what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechssm.bundle import state_bytes
from speechssm.bundle.shapes import LMShape, Shape

from .models.griffin import lm_state

CARD = "MODEL_CARD.md"


def model_card(
    name: str,
    about: str,
    shapes: Mapping[str, Shape],
    storage: str,
    parity: Mapping[str, Any],
    licences: tuple[str, ...],
    *,
    seeded: bool,
    notes: str = "",
) -> str:
    """The card as Markdown; ``notes`` (Markdown sections) come before how it may be used."""
    lm = shapes["lm"]
    assert isinstance(lm, LMShape)
    attention = lm.blocks.count("attention")
    divergence = parity["first_divergence"]
    lines = [
        f"# {name}",
        "",
        about,
        "",
        "## What it holds",
        "",
        f"Parts: {', '.join(shapes)}. Weight matrices are stored as {storage}; all arithmetic is float32.",
        "",
        f"Language model: {lm.layers} layers ({lm.layers - attention} recurrent, {attention} attention), width "
        f"{lm.width}, recurrence width {lm.lru_width}, {lm.heads} query and {lm.kv_heads} key/value heads of "
        f"{lm.head_dim}, window {lm.window} tokens, vocabulary {lm.vocab}, RoPE {lm.rope}. "
        f"One session's state: {state_bytes(lm_state(lm)) / 1024:.1f} KiB.",
        "",
        "## What was checked",
        "",
        f"{parity['steps']} sampled steps of {parity['rows']} rows on ONNX Runtime CPU against PyTorch float32 with "
        f"the weights as stored: largest difference of a state tensor {parity['largest_state_difference']:.1e}, of a "
        f"logit {parity['logits']:.1e}; free running "
        + ("never diverged." if divergence is None else f"first diverged at step {divergence}.")
        + f" Chunks equal single steps bit for bit: {'yes' if parity['chunked_bit_exact'] else 'no'}; a row equals "
        f"itself among seven: {'yes' if parity['rows_bit_exact'] else 'no'}. Curves: parity.html.",
        "",
        *([notes.rstrip(), ""] if notes else []),
        "## Use",
        "",
        "The weights are random: the bundle makes noise and serves tests and timing only."
        if seeded
        else "Continuing speech imitates the voice of the prompt. Ask the speaker, and say that speech is synthetic.",
        "",
        "## Licences",
        "",
        *([f"- {licence}" for licence in licences] or ["None recorded by the exporter."]),
        "",
    ]
    return "\n".join(lines)

"""Stage ``language``: train the Griffin language model on token streams; resumable, CPU or GPU.

Four-minute segments from their first token on, next-token cross-entropy, AdamW, cosine. The last tenth
of the steps draws mostly Kokoro and real speech, so the model ends on what prompts sound like.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape
from speechssm.export.models.griffin import Griffin
from speechssm.export.presets import PRESETS

from .. import places, weights
from ..precision import narrow
from . import baseline, streams

SAVE_SECONDS = 300.0
LOG_STEPS = 20


def folder(run: str = "language") -> Path:
    """Checkpoints, log and figure of ``run``: the voice's, or one that is trained to compare it with."""
    return places.cache(run)


def settings(name: str = "settings") -> dict[str, Any]:
    """The committed settings: ``settings`` for a GPU, ``small`` for two hours of one processor core."""
    return dict(json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8")))


def shape_of(s: dict[str, Any]) -> LMShape:
    """The shape that the settings name, or the demo preset's."""
    if "shape" not in s:
        return PRESETS["demo"].lm
    return LMShape.model_validate_json(json.dumps(s["shape"]))


def loss(model: Griffin, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy (nat) of tokens (b,t), streams.IGNORED left out."""
    logits, _ = model(tokens[:, :-1].clamp(min=0))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=streams.IGNORED)


def compiled(device: str, s: dict[str, Any]) -> Callable[[Griffin, Tensor], Tensor]:
    """:func:`loss` through ``torch.compile`` where the settings ask for it and a compiler is there.

    On one processor core it is 1.7x as fast: two thirds of the time went into maps over single elements.
    """
    there = device != "cpu" or shutil.which("g++") is not None
    return torch.compile(loss, dynamic=False) if s["compile"] and there else loss


def rate(step: int, s: dict[str, Any]) -> float:
    """Linear warm-up, then cosine to a twentieth."""
    if step < s["warmup"]:
        return float(s["peak_rate"] * (step + 1) / s["warmup"])
    part = min(1.0, (step - s["warmup"]) / max(1, s["steps"] - s["warmup"]))
    return float(s["peak_rate"] * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part))))


def watched_nats(
    model: Griffin, average: dict[str, Tensor], watch: list[streams.Stream], s: dict[str, Any]
) -> float:
    """Mean next-token cross-entropy (nat) of the averaged weights on some stretches that training leaves out."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for i in range(0, len(watch), s["batch_segments"]):
        rows = [x.tokens[: s["segment_tokens"]] for x in watch[i : i + s["batch_segments"]]]
        tokens = streams.stack(rows, max(map(len, rows))).to(device)
        with torch.no_grad():
            logits, _ = torch.func.functional_call(model, average, (tokens[:, :-1].clamp(min=0),))
            nats = F.cross_entropy(
                logits.flatten(0, 1).float(),
                tokens[:, 1:].flatten(),
                ignore_index=streams.IGNORED,
                reduction="sum",
            )
        total, count = total + float(nats), count + int((tokens[:, 1:] >= 0).sum())
    return total / count


def step_of_average(place: Path) -> int:
    """Steps behind the averaged weights kept in ``place``: the last, or those that knew the watched stretches best."""
    events = places.Log(place / "log.jsonl").read()
    watched = [e for e in events if "watched" in e]
    if watched:
        return int(min(watched, key=lambda e: e["watched"])["step"])
    return max((int(e["step"]) for e in events), default=0)


def run(
    device: str,
    s: dict[str, Any],
    shape: LMShape | None = None,
    minutes: float = math.inf,
    name: str = "language",
) -> Path:
    """Train to the configured number of steps or for ``minutes``; the path of the averaged weights.

    Where the settings have some stretches left out and watched, those are the weights of the step that knew them best.
    """
    shape, place = shape or shape_of(s), folder(name)
    log, kept = places.Log(place / "log.jsonl"), place / "average.safetensors"
    if kept.exists() and any(e["step"] >= s["steps"] for e in log.read()):
        return kept
    torch.manual_seed(s["seed"])
    spoken = streams.load()
    source, watch = streams.Source(spoken, s), streams.watched(spoken, s)
    model = baseline.model(shape).to(device)
    # Norm scales, biases and the recurrence's decay are left alone by weight decay.
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": s["weight_decay"]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    checkpoint = place / "checkpoint.safetensors"
    step = 0
    if checkpoint.exists():
        step = places.resume(checkpoint, model, average, optimiser)
    elif name == "language" and (known := weights.committed("language", shape)):
        model.load_state_dict(known.parameters)
        average, step = {k: v.detach().clone() for k, v in model.state_dict().items()}, known.step
    lowest = min((e["watched"] for e in log.read() if "watched" in e), default=math.inf)
    began = saved = noted = time.monotonic()
    sums, heard, counted = torch.zeros((), device=device), 0, 0
    measure = compiled(device, s)
    while step < s["steps"]:
        drawn = source.batch(step)
        tokens = drawn.to(device)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, s)
        with narrow(device):
            lost = measure(model, tokens)
        optimiser.zero_grad(set_to_none=True)
        lost.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(s["average"], (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        step += 1
        sums, heard, counted = sums + lost.detach(), heard + int((drawn >= 0).sum()), counted + 1
        now = time.monotonic()
        if step % LOG_STEPS == 0 or step == s["steps"]:
            log(
                step=step,
                rate=rate(step, s),
                loss=float(sums) / counted,
                tokens_per_second=heard / (now - noted),
            )
            sums, heard, counted, noted = torch.zeros_like(sums), 0, 0, now
        if watch and (step % s["watch_steps"] == 0 or step == s["steps"]):
            with narrow(device):
                seen = {name: watched_nats(model, average, some, s) for name, some in watch.items()}
            nats = sum(seen.values()) / len(seen)
            log(step=step, watched=nats, **{f"watched_{name}": value for name, value in seen.items()})
            if nats < lowest:
                lowest = nats
                places.write_tensors(kept, average)
        late = now - began > 60 * minutes
        if now - saved > SAVE_SECONDS or step == s["steps"] or late:
            places.checkpoint(checkpoint, model, average, optimiser, step)
            if not watch:
                places.write_tensors(kept, average)
            saved = time.monotonic()
        if late:
            break
    return kept

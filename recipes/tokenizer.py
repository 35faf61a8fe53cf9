"""Stage ``tokenizer``: train the demo tokenizer on aligned and teacher-labelled speech, CPU or GPU.

Loss per token: cross-entropy of the unit, cross-entropy of its phone (the unit probabilities summed per
phone), and the squared error of the teacher's leading coordinates read from the same hidden layer.
Checkpoints hold weights, their running average and the optimiser's state as safetensors.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssm.bundle.shapes import TokenizerShape
from speechssm.export.models.tokenizer import Tokenizer

from . import batches, places, targets, views
from .ahead import ahead
from .precision import narrow

SAVE_SECONDS = 300.0
LOG_STEPS = 50


class Student(nn.Module):
    """The tokenizer and the head that reads the teacher's coordinates; only the former is shipped."""

    def __init__(self, shape: TokenizerShape, phone_of: Tensor) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(shape)
        self.teacher = nn.Linear(shape.width, batches.COORDINATES)
        self.register_buffer("phone_of", phone_of, persistent=False)

    def losses(self, features: Tensor, batch: batches.Batch) -> dict[str, Tensor]:
        """Mean losses over the tokens that have a label."""
        hidden = self.tokenizer.encode(features)
        logits = self.tokenizer.head(hidden).float()
        known = batch.units >= 0
        scores = F.log_softmax(logits[known], dim=-1)
        units = batch.units[known]
        phone_of = self.get_buffer("phone_of")
        phones = torch.zeros(len(units), int(phone_of.max()) + 1, device=units.device)
        phones = phones.index_add(1, phone_of, scores.exp())
        chosen = phones.gather(1, phone_of[units][:, None])
        return {
            "unit": F.nll_loss(scores, units),
            "phone": -chosen.clamp(min=1e-6).log().mean(),
            "teacher": F.mse_loss(self.teacher(hidden).float(), batch.teacher),
            "unit_right": (scores.argmax(-1) == units).float().mean(),
            "phone_right": (phones.argmax(-1) == phone_of[units]).float().mean(),
        }


def folder() -> Path:
    """Checkpoints, log and figure."""
    return places.cache("tokenizer")


def rate(step: int, settings: dict[str, Any]) -> float:
    """Linear warm-up, then cosine to a hundredth."""
    if step < settings["warmup"]:
        return float(settings["peak_rate"] * (step + 1) / settings["warmup"])
    part = min(1.0, (step - settings["warmup"]) / max(1, settings["steps"] - settings["warmup"]))
    return float(settings["peak_rate"] * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part))))


def run(root: Path, config: dict[str, Any], device: str) -> None:
    """Train to the configured number of steps, going on from the last checkpoint."""
    settings = config["train"]
    torch.manual_seed(settings["seed"])
    shape = TokenizerShape(**config["shape"])
    source = batches.Source(root, config, views.Views(**config.get("views", {})))
    student = Student(shape, torch.from_numpy(targets.load().phone_of)).to(device)
    plain = [p for n, p in student.named_parameters() if p.dim() < 2]
    decayed = [p for n, p in student.named_parameters() if p.dim() >= 2]
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    average = {k: v.detach().clone() for k, v in student.tokenizer.state_dict().items()}
    checkpoint = folder() / "checkpoint.safetensors"
    step = places.resume(checkpoint, student, average, optimiser) if checkpoint.exists() else 0
    log = places.Log(folder() / "log.jsonl")
    banks = views.filter_banks(shape.mels, source.views).to(device)
    saved = noted = time.monotonic()
    sums: dict[str, float] = {}
    counted = 0
    # A GPU would wait for the processor's part of the work; a processor has no idle core to give it.
    threads = min(8, (os.cpu_count() or 1) - 1) if device == "cuda" else 0
    for batch in ahead(source.batch, step, settings["steps"], threads):
        batch = batch.to(device)
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            power = views.narrowed(student.tokenizer.power(batch.audio), source.views, generator)
            bank = banks[torch.randint(len(banks), (len(power),), generator=generator).to(device)]
            features = views.masked(student.tokenizer.features(power, bank), source.views, generator)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, settings)
        with narrow(device):
            losses = student.losses(features, batch)
        total = losses["unit"] + settings["phone_share"] * losses["phone"]
        total = total + settings["teacher_share"] * losses["teacher"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        keep = min(settings["average"], (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in student.tokenizer.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        counted += 1
        now = time.monotonic()
        if step % LOG_STEPS == 0:
            heard = counted * settings["batch_seconds"] / (now - noted)
            means = {name: value / counted for name, value in sums.items()}
            log(step=step, rate=rate(step, settings), heard_per_second=heard, **means)
            sums, counted, noted = {}, 0, now
        if now - saved > SAVE_SECONDS or step == settings["steps"]:
            places.checkpoint(checkpoint, student, average, optimiser, step)
            places.write_tensors(folder() / "average.safetensors", average)
            saved = time.monotonic()

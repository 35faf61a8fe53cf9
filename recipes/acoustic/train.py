"""Stage ``acoustic train``: masked prediction of codes, level by level, and a voiceprint from the prompt.

Loss: cross-entropy on the hidden codes of each row's level, and the cosine between the speaker's
voiceprint and a linear map of the pooled prompt, which makes the prompt's encoding about the voice.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS, AcousticShape
from speechssm.export.models.acoustic import Acoustic, Voice

from .. import data, places, splits, weights
from ..precision import narrow
from . import prepare, voiceprint
from .crops import Batch, Crops, Mixture
from .packed import Examples

VALIDATION_EVERY = 17
"""Every 17th training speaker of LibriSpeech, at its own speed, chooses checkpoints instead of training."""
FOLLOW_EVERY = 5
"""Steps between updates of the averaged weights."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run besides the data."""

    steps: int = 30_000
    batch: int = 24
    seed: int = 0
    learning_rate: float = 1.5e-3
    warmup: int = 500
    weight_decay: float = 0.05
    dropout: float = 0.1
    smoothing: float = 0.05
    voice: float = 0.5
    average: float = 0.999
    save_seconds: float = 300.0
    judge_every: int = 1000
    judge_batches: int = 8
    mixture: Mixture = field(default_factory=Mixture)

    def rate(self, step: int, begun: int = 0) -> float:
        """Learning rate: warm-up from step ``begun``, where the optimizers are new, then a cosine to a hundredth."""
        if step - begun < self.warmup:
            return self.learning_rate * (step - begun + 1) / self.warmup
        share = (step - begun - self.warmup) / max(1, self.steps - begun - self.warmup)
        return self.learning_rate * (0.505 + 0.495 * math.cos(math.pi * min(1.0, share)))


class Run:
    """Model, voiceprint map and optimizer, saved and resumed together."""

    def __init__(self, shape: AcousticShape, plan: Plan, device: str) -> None:
        self.shape, self.plan, self.device = shape, plan, device
        torch.manual_seed(plan.seed)
        self.model = Acoustic(shape, plan.dropout).to(device)
        self.print = nn.Linear(shape.width, voiceprint.WIDTH).to(device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizers = optimizers(self.model, self.print, plan, fused=device == "cuda")
        self.step = self.begun = 0

    @torch.no_grad()
    def start_from(self, codebooks: Tensor) -> None:
        """Begin with the codec's own vectors (q,c,r) as code embeddings: codes that sound alike start alike.

        Each level is centred and scaled to unit variance. Raises ValueError when the sizes differ.
        """
        table = self.model.code_embedding[:, : self.shape.codes]
        if table.shape != codebooks.shape:
            raise ValueError(f"codebooks are {tuple(codebooks.shape)}, code embeddings {tuple(table.shape)}")
        centred = codebooks - codebooks.mean(dim=1, keepdim=True)
        table.copy_(centred / centred.std(dim=(1, 2), keepdim=True).clamp(min=1e-6))
        self.average["code_embedding"].copy_(self.model.code_embedding)

    def save(self, path: Path) -> None:
        """Everything to one safetensors file."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"print.{k}": v for k, v in self.print.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, optimizer in self.optimizers.items():
            for index, entry in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in entry.items()}
        places.write_tensors(path, tensors | {"step": torch.tensor([self.step, self.begun])})

    def load(self, path: Path) -> None:
        """Continue where :meth:`save` stopped."""
        tensors = {k: v.to(self.device) for k, v in places.load_tensors(path).items()}
        self.model.load_state_dict(_under(tensors, "model"))
        self.print.load_state_dict(_under(tensors, "print"))
        self.average = _under(tensors, "average")
        for name, optimizer in self.optimizers.items():
            whole = optimizer.state_dict()
            entries: dict[int, dict[str, Tensor]] = {}
            for at, value in _under(tensors, name).items():
                index, key = at.split(".", 1)
                entries.setdefault(int(index), {})[key] = value
            whole["state"] = entries
            optimizer.load_state_dict(whole)
        self.step, self.begun = tensors["step"].tolist()

    def go_on_from(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Continue from finished weights alone; the optimizers and the voiceprint map begin anew."""
        self.model.load_state_dict(dict(parameters))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step = self.begun = step

    def advance(self, crops: Crops) -> dict[str, Tensor]:
        """One step; returns its losses."""
        plan = self.plan
        torch.manual_seed(plan.seed * 1_000_003 + self.step)  # dropout, the same after a resume
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(self.step, self.begun)
        self.model.train()
        batch = crops(plan.seed, self.step, plan.batch)
        with narrow(self.device):
            logits, pooled = predict(self.model, batch)
            heard = self.print(pooled)
        code = code_loss(logits, batch, plan.smoothing)
        voice = 1 - F.cosine_similarity(heard.float(), batch.voice, dim=1).mean()
        loss = code.mean() + plan.voice * voice
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        slope = nn.utils.clip_grad_norm_([*self.model.parameters(), *self.print.parameters()], 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        if self.step % FOLLOW_EVERY == 0:
            self._follow()
        self.step += 1
        coarse = batch.level == 0
        return {
            "loss": loss.detach(),
            "level 1": (code.detach() * coarse).sum() / coarse.sum().clamp(min=1),
            "voice": voice.detach(),
            "slope": slope,
        }

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights, faster at first."""
        keep = min(self.plan.average, (1 + self.step) / (100 + self.step)) ** FOLLOW_EVERY
        now = self.model.state_dict()
        names = list(self.average)
        torch._foreach_lerp_([self.average[k] for k in names], [now[k] for k in names], 1 - keep)

    def averaged(self) -> Acoustic:
        """The model with averaged weights, in float32, for judging."""
        model = Acoustic(self.shape).to(self.device)
        model.load_state_dict(self.average)
        return model.eval()


def optimizers(
    model: Acoustic, heard: nn.Module, plan: Plan, *, fused: bool = False
) -> dict[str, torch.optim.Optimizer]:
    """Muon for the layers' matrices, whose rows of gradients resemble each other; AdamW for all else.

    Muon's steps are scaled to AdamW's size, so one learning rate serves both. Names are those in checkpoints.
    """
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    known = {id(p) for p in matrices}
    others = [p for p in [*model.parameters(), *heard.parameters()] if id(p) not in known]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return {
        "muon": torch.optim.Muon(matrices, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
        "adamw": torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused),
    }


def predict(model: Acoustic, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (b,f,c) of each row's level, and the pooled prompts (b / windows a prompt, d)."""
    voice = model.listen(batch.prompt_tokens, batch.prompt_codes)
    told = shared(voice, len(batch.tokens) // len(batch.prompt_tokens))
    hidden = model.hidden(batch.tokens, batch.codes, batch.known, told)
    return model.logits(hidden, batch.level), voice.pooled


def shared(voice: Voice, windows: int) -> Voice:
    """What ``windows`` windows of each prompt take from it, prompt by prompt."""
    if windows == 1:
        return voice
    keys, values = ([x.repeat_interleave(windows, 0) for x in some] for some in (voice.keys, voice.values))
    return Voice(keys, values, voice.pooled.repeat_interleave(windows, 0))


def code_loss(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy (b), in nats, over each row's hidden frames."""
    target = batch.codes[torch.arange(len(batch.level), device=batch.codes.device), batch.level]
    loss = F.cross_entropy(
        logits.float().transpose(1, 2), target, reduction="none", label_smoothing=smoothing
    )
    return (loss * batch.hidden).sum(1) / batch.hidden.sum(1)


@torch.no_grad()
def judge(model: Acoustic, crops: Crops, batches: int, rows: int) -> dict[str, float]:
    """Cross-entropy in nats and accuracy by level, every frame of the level hidden; ``score`` is their mean.

    Level 1 counts as much as all finer levels together, as in training.
    """
    levels = model.shape.levels
    sums = np.zeros((levels, 2))
    for level in range(levels):
        for i in range(batches):
            batch = crops(10**6, i, rows)
            known = torch.zeros_like(batch.known)
            known[:, :level] = True
            hidden = torch.ones_like(batch.hidden)
            at = torch.full_like(batch.level, level)
            batch = replace(batch, known=known, level=at, hidden=hidden)
            logits, _ = predict(model, batch)
            right = (logits.argmax(-1) == batch.codes[:, level]).float().mean()
            sums[level] += float(code_loss(logits, batch).mean()), float(right)
    nats, accuracy = (sums / batches).T
    figures = {f"nats {i + 1}": float(n) for i, n in enumerate(nats)}
    figures |= {f"accuracy {i + 1}": float(a) for i, a in enumerate(accuracy)}
    fine = float(nats[1:].mean()) if levels > 1 else float(nats[0])
    return figures | {"score": (float(nats[0]) + fine) / 2}


def examples(root: Path, folder: Path | None = None) -> Examples:
    """What is prepared in ``folder`` of the recordings under ``root``, copies of other speeds to train on only."""
    training, validation = chosen(data.recordings(root))
    prepared = (folder or places.cache("acoustic")) / "prepared"
    return Examples(prepare.load(training, folder=prepared), prepare.load(validation, (1.0,), prepared))


def run(
    examples: Examples,
    device: str,
    plan: Plan,
    shape: AcousticShape | None = None,
    folder: Path | None = None,
    codebooks: Callable[[], Tensor] | None = None,
    minutes: float = math.inf,
) -> None:
    """Train or resume in ``folder`` until ``plan.steps`` or for ``minutes``; keeps the best weights there.

    Without a checkpoint the committed weights are gone on from. Without those either, code embeddings start
    from the codec's ``codebooks`` (q,c,r) where a way to get them is given.
    """
    shape = shape or ACOUSTIC_PRESETS["demo"]
    folder = folder or places.cache("acoustic")
    folder.mkdir(parents=True, exist_ok=True)
    log = places.Log(folder / "train.jsonl")
    state = Run(shape, plan, device)
    if (folder / "last.safetensors").exists():
        state.load(folder / "last.safetensors")
    elif known := weights.committed("acoustic", shape):
        state.go_on_from(known.parameters, known.step)
    elif codebooks is not None:
        state.start_from(codebooks().to(device))
    crops = Crops(examples.training, shape, plan.mixture, device)
    apart = Mixture({"librispeech": 1.0}, original=1.0, tokens=plan.mixture.tokens[:1], windows=1, sent=0.0)
    checks = Crops(examples.validation, shape, apart, device)
    log(event="start", step=state.step, device=device, plan=asdict(plan), shape=shape.model_dump())
    saved = begun = time.monotonic()
    first = state.step
    while state.step < plan.steps:
        report = state.advance(crops)
        done = state.step == plan.steps or time.monotonic() - begun > 60 * minutes
        if state.step % 50 == 0:
            speed = (state.step - first) / (time.monotonic() - begun)
            losses = {k: float(v) for k, v in report.items()}
            log(
                event="step",
                step=state.step,
                rate=plan.rate(state.step, state.begun),
                steps_per_second=speed,
                **losses,
            )
        if state.step % plan.judge_every == 0 or done:
            _keep_best(state, checks, folder, log)
        if time.monotonic() - saved > plan.save_seconds or done:
            state.save(folder / "last.safetensors")
            saved = time.monotonic()
        if done:
            break


def chosen(recordings: list[data.Recording]) -> tuple[list[data.Recording], list[data.Recording]]:
    """Recordings to train on, and recordings to choose checkpoints by; neither holds a held-out one."""
    training = [r for r in splits.training(recordings) if r.corpus in prepare.CORPORA]
    splits.refuse_held_out(training)
    readers = sorted({r.speaker for r in training if r.corpus == "librispeech"}, key=int)
    apart = set(readers[::VALIDATION_EVERY])
    kept = [r for r in training if r.corpus == "librispeech" and r.speaker in apart]
    return [r for r in training if r not in set(kept)], kept


def _keep_best(state: Run, checks: Crops, folder: Path, log: places.Log) -> None:
    model = state.averaged()
    figures = judge(model, checks, state.plan.judge_batches, state.plan.batch)
    log(event="judge", step=state.step, **figures)
    described = folder / "best.json"
    before = math.inf
    if described.exists():
        before = json.loads(described.read_text(encoding="utf-8"))["figures"]["score"]
    if figures["score"] <= before:
        about = {"shape": state.shape.model_dump(), "step": state.step, "figures": figures}
        places.write_tensors(folder / "best.safetensors", model.state_dict())
        places.write_json(described, {**about, "plan": asdict(state.plan)})


def load_best(folder: Path | None = None) -> Acoustic:
    """The best weights so far as a reference model. Raises FileNotFoundError when nothing was trained yet."""
    return cast(Acoustic, weights.load("acoustic", folder))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

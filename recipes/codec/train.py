"""Stage ``codec train``: autoencoder, then quantized from a k-means start, then against a critic.

The same command runs on two cores or a GPU; only the batch differs. Every draw depends on the seed and
the step, so a resumed run sees the crops it would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle.shapes.codec import CODEC_PRESETS, CodecShape
from speechssm.export.models.codec import Codec

from .. import places, weights
from ..precision import narrow
from .critic import Critic, codec_loss, critic_loss
from .crops import Crops, chosen
from .judge import Judge
from .losses import SCALES, reconstruction
from .loudness import disturbance
from .quantizer import Trainer

CLIP = 10.0
"""Largest gradient norm; at 1 nearly every step was cut and learning was slower."""
FASTER = {"decoder.gain.weight": 4.0}
"""Log gains range over ten nats, other outputs over one: at the common rate they learn last, and after 500
steps the autoencoder reaches STOI 0.78 and PESQ 1.08 in place of 0.83 and 1.15."""
START_TIMES, REST_TIMES = 60, 100
"""Latents a code, for k-means at the start and once the encoder rests."""
FOLLOW_EVERY = 5
"""Steps between updates of the averaged weights."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run besides the data.

    ``quantize_from``, ``decay_from``, ``critic_from`` and ``rest_from`` are shares of the steps. From
    ``rest_from`` on encoder and codebooks rest: codes made from then on stay valid while the decoder
    still improves, so the acoustic stage can be trained beside it. ``loudness`` weighs
    :func:`loudness.disturbance` from there on.
    """

    steps: int = 20_000
    batch: int = 16
    crop_frames: int = 50
    seed: int = 0
    learning_rate: float = 1e-3
    warmup: int = 300
    quantize_from: float = 0.08
    decay_from: float = 0.8
    critic_from: float = 0.8
    rest_from: float = 0.8
    average: float = 0.999
    commitment: float = 0.1
    adversarial: float = 0.02
    matching: float = 0.1
    save_seconds: float = 300.0
    judge_every: int = 1000
    scales: int = len(SCALES)
    critic_rows: int = 16
    loudness: float = 0.2

    def rate(self, step: int) -> float:
        """Learning rate: warm-up, a cosine to a third until ``decay_from``, another to a fiftieth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        turn = self.decay_from * self.steps
        third = self.learning_rate / 3
        if step < turn:
            return third + (self.learning_rate - third) * _cosine(step / turn)
        last = self.learning_rate / 50
        return last + (third - last) * _cosine((step - turn) / max(1.0, self.steps - turn))


def _cosine(share: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, share))


def trimmed(shape: CodecShape, crop_frames: int) -> tuple[int, slice]:
    """(samples to draw, the part to judge): window starts are incomplete, the last frames saw no future."""
    first = (shape.hops - 1) * FRAME_SAMPLES
    ahead = shape.fft - FRAME_SAMPLES + shape.lookahead * FRAME_SAMPLES
    samples = first + crop_frames * FRAME_SAMPLES + ahead
    return samples, slice(first, samples - ahead)


class Run:
    """Model, quantizer statistics, critic and their optimizers, saved and resumed together."""

    def __init__(self, shape: CodecShape, plan: Plan, device: str) -> None:
        self.shape, self.plan, self.device = shape, plan, device
        torch.manual_seed(plan.seed)
        self.model = Codec(shape).to(device)
        self.quantizer = Trainer(self.model)
        self.critic = Critic().to(device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        fused = device == "cuda"
        groups = _groups(self.model)
        self.trained = [p for group in groups for p in group["params"]]
        self.codec_steps = torch.optim.AdamW(groups, betas=(0.8, 0.99), weight_decay=1e-3, fused=fused)
        self.critic_steps = torch.optim.AdamW(
            self.critic.parameters(), betas=(0.8, 0.99), weight_decay=1e-3, fused=fused
        )
        self.step = 0
        self.quantized = self.resting = False

    # saving

    def save(self, path: Path) -> None:
        """Everything to one safetensors file; numbers go in as tensors."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"quantizer.{k}": v for k, v in self.quantizer.tensors().items()}
        tensors |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        tensors |= _flat("codec_steps", self.codec_steps) | _flat("critic_steps", self.critic_steps)
        tensors["step"] = torch.tensor([self.step, int(self.quantized), int(self.resting)])
        places.write_tensors(path, tensors)

    def load(self, path: Path) -> None:
        """Continue where :meth:`save` stopped."""
        tensors = {k: v.to(self.device) for k, v in places.load_tensors(path).items()}
        self.model.load_state_dict(_under(tensors, "model"))
        self.average = _under(tensors, "average")
        self.quantizer.load(_under(tensors, "quantizer"))
        self.critic.load_state_dict(_under(tensors, "critic"))
        _restore(self.codec_steps, _under(tensors, "codec_steps"))
        _restore(self.critic_steps, _under(tensors, "critic_steps"))
        self.step = int(tensors["step"][0])
        self.quantized, self.resting = (bool(n) for n in tensors["step"][1:])

    @torch.no_grad()
    def go_on_from(self, parameters: Mapping[str, Tensor], step: int, resting: bool) -> None:
        """Continue from finished weights alone; optimizers and statistics begin anew."""
        self.model.load_state_dict(dict(parameters))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.quantizer.expect(self.plan.batch * self.plan.crop_frames)
        self.step, self.quantized, self.resting = step, True, resting

    # training

    def advance(self, crops: Crops) -> dict[str, float | Tensor]:
        """One step; returns its losses."""
        plan = self.plan
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + self.step)
        samples, judged = trimmed(self.shape, plan.crop_frames)
        if not self.quantized and self.step >= plan.quantize_from * plan.steps:
            self._start_codebooks(crops, samples, generator)
        if not self.resting and self.quantized and self.step >= plan.rest_from * plan.steps:
            self._rest(crops, samples, generator)
        real = crops(self.step, plan.batch, samples)
        against = self.step >= plan.critic_from * plan.steps
        for group in (*self.codec_steps.param_groups, *self.critic_steps.param_groups):
            group["lr"] = plan.rate(self.step) * group.get("faster", 1.0)
        latents, commitment = self._coded(real, generator)
        with narrow(self.device):
            made, _ = self.model.decoder(latents)
        real, made = real[:, judged].contiguous(), made[:, judged].contiguous()
        drawn = torch.randperm(len(SCALES), generator=generator)[: plan.scales].tolist()
        loss, parts = reconstruction(made, real, [SCALES[i] for i in drawn])
        loss = loss + plan.commitment * commitment
        report: dict[str, float | Tensor] = {**parts, "commitment": commitment.detach()}
        if self.resting and plan.loudness:
            heard = disturbance(made, real).mean()
            loss, report["loudness"] = loss + plan.loudness * heard, heard.detach()
        if against:
            few = slice(0, plan.critic_rows)
            report["critic"] = self._teach_critic(real[few], made[few].detach())
            with narrow(self.device):
                with torch.no_grad():
                    wanted = self.critic(real[few])
                fool, apart = codec_loss(wanted, self.critic(made[few]))
            loss = loss + plan.adversarial * fool + plan.matching * apart
            report |= {"fool": fool.detach(), "apart": apart.detach()}
        self.codec_steps.zero_grad(set_to_none=True)
        loss.backward()
        report["slope"] = nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.codec_steps.step()
        if self.step % FOLLOW_EVERY == 0:
            self._follow()
        self.step += 1
        return report

    def _coded(self, real: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """real (b,n) -> what the decoder gets (b,f,latent), commitment loss."""
        if self.resting:
            with torch.no_grad():  # in float32, as codes are made elsewhere
                sums, _ = self.quantizer.look_up(self.model.encoder(real), generator)
            return sums, sums.new_zeros(())
        with narrow(self.device):
            latents: Tensor = self.model.encoder(real)
        if not self.quantized:
            return latents, latents.new_zeros(())
        latents, commitment, _ = self.quantizer(latents.float(), generator)
        return latents, commitment

    @torch.no_grad()
    def _rest(self, crops: Crops, samples: int, generator: torch.Generator) -> None:
        """From here on the encoder is its own average, and it and the codebooks, fitted once more, stay."""
        of_encoder = {k: v for k, v in self.average.items() if k.startswith("encoder.")}
        self.model.load_state_dict(of_encoder, strict=False)
        self.quantizer.refit(self._latents(crops, samples, REST_TIMES)[0], generator)
        self.average["codebooks"].copy_(self.model.codebooks)
        self.resting = True

    def _teach_critic(self, real: Tensor, made: Tensor) -> Tensor:
        with narrow(self.device):
            loss = critic_loss(self.critic(real), self.critic(made))
        self.critic_steps.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
        self.critic_steps.step()
        return loss.detach()

    def _latents(self, crops: Crops, samples: int, times: int) -> tuple[Tensor, int]:
        """Latents (r, latent) of training crops, ``times`` as many as a level has codes, and how many a batch gives."""
        batches = -(-times * self.shape.codes // (self.plan.batch * self.plan.crop_frames))
        drawn = (crops(10**9 + i, self.plan.batch, samples) for i in range(batches))
        found = torch.cat([self.model.encoder(audio).flatten(0, 1) for audio in drawn])
        return found.float(), len(found) // batches

    @torch.no_grad()
    def _start_codebooks(self, crops: Crops, samples: int, generator: torch.Generator) -> None:
        found, batch = self._latents(crops, samples, START_TIMES)
        self.quantizer.start(found, generator, batch=batch)
        self.average["codebooks"].copy_(self.model.codebooks)
        self.quantized = True

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights, faster at first; codebooks are averages already."""
        keep = min(self.plan.average, (1 + self.step) / (100 + self.step)) ** FOLLOW_EVERY
        now = self.model.state_dict()
        names = [k for k in self.average if k != "codebooks"]
        torch._foreach_lerp_([self.average[k] for k in names], [now[k] for k in names], 1 - keep)
        self.average["codebooks"].copy_(now["codebooks"])


def run(
    root: Path,
    device: str,
    plan: Plan,
    shape: CodecShape | None = None,
    folder: Path | None = None,
    minutes: float | None = None,
) -> None:
    """Train or resume in ``folder`` until ``plan.steps``, or for ``minutes``; keeps the best weights there.

    Without a checkpoint the committed weights are gone on from.
    """
    shape = shape or CODEC_PRESETS["demo"]
    folder = folder or places.cache("codec")
    folder.mkdir(parents=True, exist_ok=True)
    log = places.Log(folder / "train.jsonl")
    state = Run(shape, plan, device)
    if (folder / "last.safetensors").exists():
        state.load(folder / "last.safetensors")
    elif known := weights.committed("codec", shape):
        state.go_on_from(known.parameters, known.step, known.about["resting"])
    training, validation = chosen(root)
    crops, judge = Crops(training, device, plan.seed), Judge(validation, shape)
    log(event="start", step=state.step, device=device, plan=asdict(plan), shape=shape.model_dump())
    saved = begun = time.monotonic()
    first = state.step
    ends = math.inf if minutes is None else begun + 60 * minutes
    while state.step < plan.steps:
        moving = not state.resting
        report = state.advance(crops)
        settled = moving and state.resting
        now = time.monotonic()
        done = state.step == plan.steps or now > ends
        if state.step % 50 == 0:
            speed = (state.step - first) / (now - begun)
            log(
                event="step",
                step=state.step,
                rate=plan.rate(state.step),
                steps_per_second=speed,
                **{k: float(v) for k, v in report.items()},
            )
        if state.step % plan.judge_every == 0 or settled or done:
            _keep_best(state, judge, folder, log)
        if now - saved > plan.save_seconds or settled or done:
            state.save(folder / "last.safetensors")
            saved = now
        if done:
            break


def averaged(state: Run) -> Codec:
    """The model with averaged weights, in float32 on the CPU."""
    model = Codec(state.shape)
    model.load_state_dict({k: v.cpu() for k, v in state.average.items()})
    return model.eval()


def _keep_best(state: Run, judge: Judge, folder: Path, log: places.Log) -> None:
    model = averaged(state)
    figures = judge(model, quantize=state.quantized)
    log(event="judge", step=state.step, quantized=state.quantized, **figures)
    described = folder / "best.json"
    before = -math.inf
    if described.exists():
        known = json.loads(described.read_text(encoding="utf-8"))
        if known.get("resting", False) == state.resting:  # weights with other codes are no rivals
            before = known["figures"]["score"]
    if state.quantized and figures["score"] >= before:
        about = {"shape": state.shape.model_dump(), "step": state.step, "figures": figures}
        about["resting"] = state.resting
        places.write_tensors(folder / "best.safetensors", model.state_dict())
        places.write_json(described, {**about, "plan": asdict(state.plan)})


def load_best(folder: Path | None = None) -> Codec:
    """The best weights so far as a reference model. Raises FileNotFoundError when nothing was trained yet."""
    return cast(Codec, weights.load("codec", folder))


def _groups(model: Codec) -> list[dict[str, Any]]:
    """Trained parameters in the model's order, cut where the rate changes."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    runs = groupby(named, key=lambda pair: FASTER.get(pair[0], 1.0))
    return [{"params": [p for _, p in pairs], "faster": faster} for faster, pairs in runs]


def _flat(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {f"{name}.{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    whole["state"] = entries
    optimizer.load_state_dict(whole)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}

"""Stage ``judge-language``: nat per token below an interpolated Kneser-Ney 5-gram, on held-out speech.

The 5-gram is trained on the very streams the model was trained on. *Alice* (spoken by flite) and real
held-out speech are judged separately; every stream is read from its first token with nothing before it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from speechssm.bundle.shapes import LMShape
from speechssm.export.models.griffin import Griffin

from .. import places
from . import baseline, ngram, streams, train

BAR_NAT = 0.10


def model_nats(model: Griffin, held: list[streams.Stream], most: int) -> float:
    """Mean nat per token over ``held``, at most ``most`` tokens of each."""
    total, count = 0.0, 0
    for stream in held:
        tokens = torch.from_numpy(stream.tokens[:most])[None]
        with torch.inference_mode():
            logits, _ = model(tokens[:, :-1])
        total += float(F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    return total / count


def run(
    s: dict[str, Any], shape: LMShape | None = None, *, limit: int = 60, name: str = "language"
) -> dict[str, Any]:
    """Measure the averaged weights of the run ``name``, log and draw."""
    shape, place = shape or train.shape_of(s), train.folder(name)
    model = baseline.model(shape).eval()
    model.load_state_dict(places.load_tensors(place / "average.safetensors"))
    everything = streams.load()
    yardstick = ngram.KneserNey([x.tokens for x in streams.training(everything)], shape.vocab)
    held = [x for x in everything if x.held_out and len(x.tokens) > 1]
    sets = {
        "alice": [x for x in held if x.corpus == "stories_text"],
        "real": [x for x in held if x.corpus in ("kathleen", "librispeech")],
        "kokoro": [x for x in held if x.corpus == "stories_speech"],
    }
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    for corpus, chosen in sets.items():
        chosen = chosen[:: max(1, len(chosen) // limit)][:limit]
        if not chosen:
            continue
        five = float(
            np.mean(np.concatenate([yardstick.loss(x.tokens[: s["segment_tokens"]]) for x in chosen]))
        )
        ours = model_nats(model, chosen, s["segment_tokens"])
        figures[corpus] = {
            "streams": len(chosen),
            "model_nat": ours,
            "five_gram_nat": five,
            "gain_nat": five - ours,
        }
    judged = [figures[name]["gain_nat"] for name in ("alice", "real") if name in figures]
    figures |= {"step": train.step_of_average(place), "passes": len(judged) == 2 and min(judged) >= BAR_NAT}
    places.Log(place / "judged.jsonl")(**figures)
    best = place / "best.json"
    if not best.exists() or worst_gain(figures) > worst_gain(places.read_json(best)["figures"]):
        places.write_tensors(place / "best.safetensors", model.state_dict())
        places.write_json(best, {"shape": shape.model_dump(), "step": figures["step"], "figures": figures})
    draw(place)
    return figures


def worst_gain(figures: dict[str, Any]) -> float:
    """Nat per token below the 5-gram where it is least: training much longer on little speech makes it worse."""
    return min(
        (figures[name]["gain_nat"] for name in ("alice", "real") if name in figures), default=-math.inf
    )


def draw(folder: Path) -> None:
    """Training loss and the held-out gains over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = places.Log(folder / "log.jsonl").read()
    judged = places.Log(folder / "judged.jsonl").read()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in ("loss", "watched"):
        some = [e for e in trained if name in e]
        left.plot([e["step"] for e in some], [e[name] for e in some], label=name)
    left.legend()
    left.set(xlabel="step", ylabel="nat / token", title="Language model: training")
    for name in ("alice", "real", "kokoro"):
        some = [e for e in judged if name in e]
        right.plot([e["step"] for e in some], [e[name]["gain_nat"] for e in some], "o-", label=name)
    right.axhline(BAR_NAT, linestyle=":", color="black")
    right.set(xlabel="step", ylabel="nat / token below the 5-gram", title="Held out (dotted: bar)")
    right.legend()
    figure.savefig(folder / "language.png", dpi=110)
    pyplot.close(figure)

"""Stage ``judge-tokenizer``: the bars of the tokenizer on held-out speech, and its figure.

- PNMI over the held-out kathleen sentences (text given) and the held-out LibriSpeech speakers (text by
  Whisper-base), phones by forced alignment, silence left out, one phone per 40 ms token;
- ten held-out arctic sentences in four voices (the real reader and three held-out Kokoro voices): mean
  edit distance over pairs, repeats removed, divided by the longer length; ten sentences of *Alice* in
  the three Kokoro voices beside it;
- RTF: processor time of one 30 s window through the exported graph on one thread of ONNX Runtime CPU:
  what two free cores need at most, whatever else the machine is doing.

Every recording is tokenised as the runtime does it: padded from its own start to a 30 s window.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.bundle.shapes import TokenizerShape
from speechssm.export.graphs.tokenizer import build_tokenizer, tokenizer_weights
from speechssm.export.models.tokenizer import Tokenizer

from . import data, places, splits, units
from .inline import inline
from .teachers import align, kokoro
from .tokenize import tokenize

WINDOW_SAMPLES = 30 * SAMPLE_RATE_HZ
BARS = {"pnmi": 0.60, "spread": 0.55, "spread_goal": 0.45, "rtf": 0.006}


def session(model: Tokenizer, threads: int = 2) -> onnxruntime.InferenceSession:
    """The exported graph on ONNX Runtime CPU."""
    proto = inline(build_tokenizer(model.shape), {"tokenizer": tokenizer_weights(model)})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def tokens(graph: onnxruntime.InferenceSession, audio: NDArray[np.int16]) -> NDArray[np.int64]:
    """Tokens (t) of a recording (n) int16, as the runtime makes them."""
    return tokenize(graph, audio.astype(np.float32) / 32768.0)


def phone_information(
    graph: onnxruntime.InferenceSession, recordings: list[data.Recording], limit: int
) -> dict[str, Any]:
    """PNMI over the aligned ones of ``recordings``."""
    chosen = [r for r in recordings if align.load(r.key)]
    chosen = chosen[:: max(1, len(chosen) // limit)][:limit]
    found, phones = [], []
    for recording in chosen:
        heard = tokens(graph, data.audio(recording))
        found.append(heard)
        phones.append(align.per_token(align.load(recording.key) or [], len(heard)))
    u, p = np.concatenate(found), np.concatenate(phones)
    spoken = p != align.SILENCE
    used = np.bincount(u, minlength=1)
    share = used[used > 0] / used.sum()
    return {
        "pnmi": units.pnmi(u[spoken], p[spoken]),
        "recordings": len(chosen),
        "tokens": len(u),
        "units_used": int((used > 0).sum()),
        "entropy_nat": float(-(share * np.log(share)).sum()),
        "changes_per_second": 25 * float(np.mean(u[1:] != u[:-1])),
    }


def same_text(root: Path) -> dict[str, list[NDArray[np.int16]]]:
    """Per text, its audio in every voice; arctic texts start with the real reader."""
    real: dict[str, data.Recording] = {}
    for recording in data.kathleen(root):
        real.setdefault(recording.stem.rsplit("_", 1)[0], recording)
    found = {}
    for name, _ in kokoro.sentences(root):
        versions = [data.audio(real[name])] if name in real else []
        versions += [
            data.decode(kokoro.folder() / f"{name}--{v}.flac") for v in sorted(splits.HELD_OUT_VOICES)
        ]
        found[name] = versions
    return found


def measure(model: Tokenizer, root: Path, *, limit: int = 150) -> dict[str, Any]:
    """Every figure of the stage."""
    graph = session(model)
    kathleen = phone_information(graph, splits.testing(data.kathleen(root)), limit)
    librispeech = phone_information(graph, splits.testing(data.librispeech(root)), limit)
    texts = {name: [tokens(graph, a) for a in versions] for name, versions in same_text(root).items()}
    arctic = [units.spread(v) for v in texts.values() if len(v) == 4]
    alice = [units.spread(v) for v in texts.values() if len(v) == 3]
    window = np.random.default_rng(0).standard_normal((1, WINDOW_SAMPLES)).astype(np.float32) * 0.1
    alone = session(model, threads=1)
    times = []
    for _ in range(10):
        start = time.thread_time()
        alone.run(["tokens"], {"audio": window})
        times.append(time.thread_time() - start)
    return {
        "kathleen": kathleen,
        "librispeech": librispeech,
        "pnmi": (kathleen["pnmi"] + librispeech["pnmi"]) / 2,
        "spread": float(np.mean(arctic)),
        "spread_by_text": arctic,
        "spread_alice_three_voices": float(np.mean(alice)),
        "rtf": float(np.median(times)) / 30,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def load_model(path: Path, shape: TokenizerShape) -> Tokenizer:
    """The tokenizer with the weights of a safetensors file in this project's training layout."""
    model = Tokenizer(shape).eval()
    model.load_state_dict({k: torch.as_tensor(v) for k, v in places.load_tensors(path).items()})
    return model


def passes(figures: dict[str, Any]) -> bool:
    """Whether the tokenizer may be shipped; PNMI must hold for both held-out sets."""
    worst = min(figures["kathleen"]["pnmi"], figures["librispeech"]["pnmi"])
    return bool(
        worst >= BARS["pnmi"] and figures["spread"] <= BARS["spread"] and figures["rtf"] <= BARS["rtf"]
    )


def run(root: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Judge the latest average, keep it as ``best`` when it is the best yet, and draw the figure."""
    folder = places.cache("tokenizer")
    shape = TokenizerShape(**config["shape"])
    model = load_model(folder / "average.safetensors", shape)
    figures = measure(model, root)
    steps = [e["step"] for e in places.Log(folder / "log.jsonl").read() if "step" in e]
    figures |= {"step": max(steps, default=0), "passes": passes(figures), "bars": BARS}
    places.Log(folder / "judged.jsonl")(**figures)
    best = folder / "best.json"
    known = places.read_json(best) if best.exists() else None
    if known is None or score(figures) > score(known["figures"]):
        places.write_tensors(folder / "best.safetensors", dict(model.state_dict()))
        places.write_json(best, {"shape": shape.model_dump(), "step": figures["step"], "figures": figures})
    draw(folder)
    return figures


def score(figures: dict[str, Any]) -> float:
    """Higher is better: phones explained less what changes with the voice."""
    return float(min(figures["kathleen"]["pnmi"], figures["librispeech"]["pnmi"]) - figures["spread"])


def draw(folder: Path) -> None:
    """Losses over steps, and the bars over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = [e for e in places.Log(folder / "log.jsonl").read() if "unit" in e]
    judged = places.Log(folder / "judged.jsonl").read()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in ("unit", "phone", "teacher"):
        left.plot([e["step"] for e in trained], [e[name] for e in trained], label=name)
    left.set(xlabel="step", ylabel="training loss", title="Tokenizer: training")
    left.legend()
    at = [e["step"] for e in judged]
    right.plot(at, [e["kathleen"]["pnmi"] for e in judged], "o-", label="PNMI, kathleen")
    right.plot(at, [e["librispeech"]["pnmi"] for e in judged], "o-", label="PNMI, LibriSpeech")
    right.plot(at, [e["spread"] for e in judged], "s-", label="edit distance, 4 voices")
    right.axhline(BARS["pnmi"], color="C0", linestyle=":")
    right.axhline(BARS["spread"], color="C2", linestyle=":")
    right.set(xlabel="step", title="Held-out speech (dotted: bars)", ylim=(0, 1))
    right.legend()
    figure.savefig(folder / "tokenizer.png", dpi=110)
    pyplot.close(figure)

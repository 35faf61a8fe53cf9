"""Stage ``listen``: a page to hear the voice by: originals, codec, resynthesis, continuations, spectrograms.

Everything is held out and goes through the bundle as it ships. The page and its recordings lie in one
folder that can be copied anywhere; nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_SAMPLES
from speechssm.runtime.acoustic import SCHEDULES, WindowRow
from speechssm.runtime.codec import CodecStream, encode
from speechssm.runtime.model import Model
from speechssm.runtime.random import acoustic_uniforms

from . import data, places, splits, weights

PROMPT_SECONDS = 10.0
SEED = 0

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """One column of the page."""

    name: str
    about: str


KINDS = (
    Kind("original", "the held-out recording"),
    Kind("codec", "encoded and decoded: what the codec alone costs"),
    Kind("resynthesis", "spoken again from its semantic tokens in its own voice"),
    Kind("continuation", "what the voice goes on to say"),
)


def prompts(root: Path, count: int) -> list[tuple[str, Audio]]:
    """Held-out real recordings of at least 7 s, name and audio (n) of 10 s at most; real readers only."""
    found: list[tuple[str, Audio]] = []
    for recording in splits.testing(data.recordings(root)):
        if recording.corpus != "librispeech":
            continue
        audio = data.audio(recording)[: int(PROMPT_SECONDS * SAMPLE_RATE_HZ)].astype(np.float32) / 32768.0
        if len(audio) >= 7 * SAMPLE_RATE_HZ:
            found.append((recording.stem, audio[: len(audio) // TOKEN_SAMPLES * TOKEN_SAMPLES]))
        if len(found) == count:
            break
    return found


def versions(model: Model, audio: Audio, seconds: float) -> dict[str, Audio]:
    """The page's recordings of one prompt, by kind."""
    stages = model.stages
    tokens = stages.tokenize(audio)
    codes = encode(stages.graphs("codec_encode"), audio)
    window = WindowRow(stages.voice(audio, tokens), tokens, codes[:, :0], partial(acoustic_uniforms, SEED, 0))
    spoken = stages.decode_window(window, SCHEDULES["default"])
    return {
        "original": audio,
        "codec": _decoded(stages.codec_stream(), codes),
        "resynthesis": _decoded(stages.codec_stream(), spoken),
        "continuation": model.generate(audio, rate_hz=SAMPLE_RATE_HZ, seconds=seconds, seed=SEED).audio,
    }


def _decoded(stream: CodecStream, codes: NDArray[np.int64]) -> Audio:
    return np.concatenate(list(stream.decode(codes)))


def run(root: Path, target: Path | None = None, count: int = 4, seconds: float = 20.0) -> Path:
    """Write ``index.html`` with its recordings and pictures into ``target``; its path."""
    target = target or places.cache("listen")
    target.mkdir(parents=True, exist_ok=True)
    model = speechssm.load(weights.VOICE)
    rows = []
    for name, audio in prompts(root, count):
        cells = []
        for kind, made in versions(model, audio, seconds).items():
            stem = f"{name}-{kind}"
            soundfile.write(
                target / f"{stem}.ogg", np.clip(made, -1, 1), SAMPLE_RATE_HZ, format="OGG", subtype="OPUS"
            )
            spectrogram(target / f"{stem}.png", made)
            cells.append(
                f'<td><audio controls preload="none" src="{stem}.ogg"></audio><br>'
                f'<img loading="lazy" alt="spectrogram, {kind} of {escape(name)}" src="{stem}.png"></td>'
            )
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    page = target / "index.html"
    with places.partial(page) as temporary:
        temporary.write_text(_page(rows), encoding="utf-8")
    return page


def spectrogram(path: Path, audio: Audio) -> None:
    """Draw audio (n) up to 8 kHz, 80 dB deep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 1.6), layout="constrained")
    top = 20 * np.log10(max(float(np.abs(audio).max()), 1e-4))
    axes.specgram(
        audio + 1e-6, NFFT=512, noverlap=384, Fs=SAMPLE_RATE_HZ, vmin=top - 110, vmax=top - 30, cmap="magma"
    )
    axes.set(xlabel="s", ylabel="Hz")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _page(rows: list[str]) -> str:
    heads = "".join(f"<th>{kind.name}<br><small>{kind.about}</small></th>" for kind in KINDS)
    known: list[dict[str, Any]] = []
    judged = places.cache("system") / "minutes.json"
    if judged.exists():
        known = places.read_json(judged)
    minutes = "".join(
        f"<tr><td>{m['minute']}</td>" + "".join(f"<td>{_number(m.get(k))}</td>" for k in MINUTE) + "</tr>"
        for m in known
    )
    columns = "".join(f"<th>{k}</th>" for k in ("minute", *MINUTE))
    by_minute = f"<h2>By the minute</h2><table><tr>{columns}</tr>{minutes}</table>" if known else ""
    return (
        '<!doctype html><meta charset="utf-8"><title>speechssm: listen</title>'
        "<style>body{font:15px sans-serif;margin:2em}td,th{padding:.4em;vertical-align:top;text-align:left}"
        "img{width:360px}audio{width:360px}small{font-weight:normal}</style>"
        "<h1>The demo voice on held-out readers</h1>"
        "<p>No reader and no sentence here was trained on. Every recording went through the bundle as it ships.</p>"
        f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>{by_minute}"
    )


MINUTE = ("similarity", "dnsmos", "silence", "loops")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

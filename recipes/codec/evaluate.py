"""Stage ``codec evaluate``: the best weights on held-out real speech, and on Kokoro voices beside it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from speechssm.axes import SAMPLE_RATE_HZ

from .. import data, places, splits
from .judge import Samples, mean, resynthesize, score, scorers, whole_frames
from .train import load_best

BARS = {"pesq_wb": 2.3, "stoi": 0.90}
CORPORA = ("kathleen", "librispeech", "stories_speech")


def run(root: Path, folder: Path | None = None, most: int = 1000) -> dict[str, dict[str, float]]:
    """Print and save (``evaluation.json``) scores by corpus; ``mean``, of the two real ones, is judged."""
    model = load_best(folder)
    folder = folder or places.cache("codec")
    if not scorers():
        print("pesq and pystoi are not installed (pip install 'speechssm[recipes]'): no bar can be judged")
    held_out = splits.testing(data.recordings(root))
    rows: dict[str, dict[str, float]] = {}
    used: dict[str, list[np.ndarray]] = {}
    texts: dict[str, str] = {}
    for corpus in CORPORA:
        figures = []
        began, seconds = 0.0, 0.0
        for recording in [r for r in held_out if r.corpus == corpus][:most]:
            # Long readings count by their first segment.
            audio = whole_frames(data.segment_audio(data.segments(recording)[0]))
            tick = time.perf_counter()
            made = resynthesize(model, audio)
            began, seconds = began + time.perf_counter() - tick, seconds + len(audio) / SAMPLE_RATE_HZ
            figures.append(score(audio, made))
            if recording.text is not None and corpus == "kathleen":
                _keep(folder / "heldout", recording.stem, audio, made)
                texts[recording.stem] = recording.text
            with torch.no_grad():
                used.setdefault(corpus, []).append(model.encode(torch.from_numpy(audio)[None])[0].numpy())
        rows[corpus] = {**mean(figures), "files": float(len(figures)), "rtf": began / seconds}
    rows["mean"] = {
        k: (rows["kathleen"][k] + rows["librispeech"][k]) / 2 for k in ("mel", *BARS) if k in rows["kathleen"]
    }
    codes = np.concatenate([c for found in used.values() for c in found], axis=1)
    print(table(rows))
    print("codes in use per level:", " ".join(str(len(np.unique(level))) for level in codes))
    print("entropy per level, bits:", " ".join(f"{entropy(level, model.shape.codes):.2f}" for level in codes))
    for name, bar in BARS.items():
        if name in rows["mean"]:
            verdict = "met" if rows["mean"][name] >= bar else "missed"
            print(f"{name} {rows['mean'][name]:.3f}, bar {bar}: {verdict}")
    places.write_json(folder / "evaluation.json", rows)
    places.write_json(folder / "heldout" / "texts.json", texts)
    return rows


def _keep(folder: Path, stem: str, real: Samples, made: Samples) -> None:
    """Write a pair as FLAC, for the word judge and for listening."""
    for kind, audio in (("real", real), ("made", made)):
        path = folder / kind / f"{stem}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.clip(audio, -1.0, 1.0), SAMPLE_RATE_HZ)


def entropy(level: np.ndarray, codes: int) -> float:
    """Entropy of one level's codes (f), in bits."""
    share = np.bincount(level, minlength=codes) / len(level)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows by corpus as text."""
    columns = ["pesq_wb", "stoi", "mel", "files", "rtf"]
    lines = [f"{'':16}" + "".join(f"{c:>10}" for c in columns)]
    for name, row in rows.items():
        lines.append(f"{name:16}" + "".join(f"{row[c]:10.4g}" if c in row else f"{'-':>10}" for c in columns))
    return "\n".join(lines)

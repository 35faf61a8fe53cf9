"""Stage ``teach``: teacher features of every segment, cached at 25 Hz as float16 (one file a segment)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechssm.axes import TOKEN_SAMPLES

from . import data, figures, places
from .teachers.packages import whisper_base
from .teachers.whisper import WhisperBlocks, token_rate

SHORTEST_SECONDS = 0.8


def features_path(segment: data.Segment) -> Path:
    """Where the segment's teacher features (t, 512) float16 are kept."""
    return places.cache("teacher") / f"{segment.key}.safetensors"


def features(segment: data.Segment) -> np.ndarray:
    """Cached teacher features (t, 512) float16 of a segment."""
    return places.load_arrays(features_path(segment))["h3"]


def all_segments(root: Path, corpora: tuple[str, ...] = ()) -> list[data.Segment]:
    """Every segment long enough to be of use, of all corpora or those named."""
    chosen = [r for r in data.recordings(root) if not corpora or r.corpus in corpora]
    found = [s for r in chosen for s in data.segments(r)]
    return [s for s in found if s.seconds >= SHORTEST_SECONDS]


def run(root: Path, device: str) -> None:
    """Compute what is missing; interrupting and starting again loses nothing."""
    model = WhisperBlocks(whisper_base(places.cache("packages")) / "model.bin").eval().to(device)
    todo = [s for s in all_segments(root) if not features_path(s).exists()]
    todo.sort(key=lambda s: s.recording.corpus == "stories_speech")
    narrow = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    for segment in tqdm(todo, "teacher features", unit="segment"):
        audio = torch.from_numpy(data.segment_audio(segment))[None].to(device)
        tokens = -(-audio.shape[1] // TOKEN_SAMPLES)
        audio = torch.nn.functional.pad(audio, (0, tokens * TOKEN_SAMPLES - audio.shape[1]))
        with torch.inference_mode(), narrow:
            h3 = token_rate(model(audio).float(), tokens)[0]
        places.write_arrays(features_path(segment), {"h3": h3.cpu().numpy().astype(np.float16)})
    hours: dict[str, float] = {}
    for segment in all_segments(root):
        corpus = segment.recording.corpus
        hours[corpus] = hours.get(corpus, 0.0) + segment.seconds / 3600
    folder = places.cache("teacher")
    places.Log(folder / "log.jsonl")(stage="teach", new_segments=len(todo), hours=hours)
    figures.bars(folder / "teach.png", "Speech with teacher features", "hours", hours)

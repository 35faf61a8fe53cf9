"""What overlap and padding do: windows of one stream synthesised over a grid of both, and listened to at the joins.

Overlaps of 0, 4, 7.5 and 15 s; the last, short window padded from the stream's start (the paper's), with
tokens of silence, or not at all. The stream's tokens are the same throughout, so is every random number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_FRAMES, TOKEN_RATE_HZ, TOKEN_SAMPLES
from speechssm.runtime.acoustic import AcousticSchedule, Voice, WindowRow
from speechssm.runtime.random import acoustic_uniforms
from speechssm.runtime.stages import Stages
from speechssm.runtime.stitch import CodeStitcher
from speechssm.runtime.windows import WindowCall, WindowSettings, pad_indices, plan

Tokens = NDArray[np.int64]
Audio = NDArray[np.float32]

OVERLAPS_S = (0.0, 4.0, 7.5, 15.0)
PADDINGS = ("stream start", "silence", "none")


@dataclass(frozen=True)
class Joined:
    """The stream under one setting: audio (n), the samples at which windows meet, where the last window begins."""

    overlap_s: float
    padding: str
    audio: Audio
    joins: list[int]
    last: int


def grid(
    stages: Stages,
    tokens: Tokens,
    voice: Voice,
    schedule: AcousticSchedule,
    overlaps_s: Sequence[float],
    window: int,
) -> Iterator[Joined]:
    """Every setting. Windows that no padding reaches are made once for all paddings."""
    quiet = silence_token(stages)
    for overlap_s in overlaps_s:
        settings = WindowSettings(window, round(overlap_s * TOKEN_RATE_HZ))
        calls = list(plan(settings, len(tokens)))
        made = {
            call: _codes(stages, tokens, voice, schedule, call, "stream start", quiet) for call in calls[:-1]
        }
        for padding in PADDINGS:
            made[calls[-1]] = _codes(stages, tokens, voice, schedule, calls[-1], padding, quiet)
            stitcher = CodeStitcher(settings, stages.levels)
            codes = np.concatenate([stitcher.push(call, made[call]) for call in calls], axis=1)
            audio = np.concatenate(list(stages.codec_stream().decode(codes)))
            joins = [call.emit_from * TOKEN_SAMPLES for call in calls[1:]]
            yield Joined(overlap_s, padding, audio, joins, joins[-1] if joins else 0)


def silence_token(stages: Stages) -> int:
    """The token the tokenizer gives to silence most often."""
    said = stages.tokenize(np.zeros(2 * SAMPLE_RATE_HZ, np.float32))
    return int(np.bincount(said).argmax())


def _codes(
    stages: Stages,
    tokens: Tokens,
    voice: Voice,
    schedule: AcousticSchedule,
    call: WindowCall,
    padding: str,
    quiet: int,
) -> NDArray[np.int64]:
    """Codes (q, 2t) of one call, t its bucket; frames of padding that is left out are zeros, which nobody reads."""
    own = tokens[call.start : call.end]
    if padding == "stream start":
        own = np.concatenate([own, tokens[list(pad_indices(call.end, call.pad))]])
    elif padding == "silence":
        own = np.concatenate([own, np.full(call.pad, quiet, np.int64)])
    nothing = np.zeros((stages.levels, 0), np.int64)
    row = WindowRow(voice, own.astype(np.int64), nothing, partial(acoustic_uniforms, 0, call.start))
    codes = stages.decode_window(row, schedule)
    whole = np.zeros((stages.levels, call.bucket * TOKEN_FRAMES), np.int64)
    whole[:, : codes.shape[1]] = codes
    return whole

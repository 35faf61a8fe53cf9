"""From a recording to what a session starts with: prompt tokens, and the speaker's voice."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.engines.protocol import Graph
from speechssm.errors import AudioError, BundleError, SnapshotError

from . import codec
from .acoustic import Voice
from .windows import DEFAULT, SPEAKER_TOKENS, merge_tokens, pad_ranges, prompt_windows, speaker_indices


def check_voice(voice: Voice, vocab: int, levels: int, codes: int) -> None:
    """Raise SnapshotError unless the tokens and codes of ``voice`` fit a model of these sizes."""
    shapes = ((SPEAKER_TOKENS,), (levels, TOKEN_FRAMES * SPEAKER_TOKENS))
    if (voice.tokens.shape, voice.codes.shape) != shapes:
        raise SnapshotError(
            "the snapshot's speaker prompt has another shape than this model's: it is of another bundle"
        )
    for name, values, limit in (("token", voice.tokens, vocab), ("code", voice.codes, codes)):
        if values.dtype != np.int64 or not (values.min() >= 0 and values.max() < limit):
            raise SnapshotError(f"the snapshot's speaker prompt holds a {name} outside this model's {limit}")


def tokenize(graph: Graph, audio: np.ndarray) -> np.ndarray:
    """audio (n) at 16 kHz -> tokens int64 (t), t = ceil(n/640), in 30 s windows joined at mid-overlap.

    Every window has the full length; what is missing comes from the recording's own start, so that its
    last tokens sound mid-stream (paper section 3.3).
    """
    work = tokenize_by_window(graph, audio)
    while True:
        try:
            next(work)
        except StopIteration as end:
            tokens: np.ndarray = end.value
            return tokens


def tokenize_by_window(graph: Graph, audio: np.ndarray) -> Generator[None, None, np.ndarray]:
    """:func:`tokenize` with a pause behind each window, so that other work fits in between."""
    windows = prompt_windows(len(audio), DEFAULT)
    rows = []
    for window in windows:
        pieces = [audio[window.start : window.end]]
        pieces += [audio[part.start : part.stop] for part in pad_ranges(len(audio), window.pad)]
        row = np.ascontiguousarray(np.concatenate(pieces)[None], np.float32)
        rows.append(graph.call({"audio": row}, ["tokens"])[0][0])
        if len(rows[-1]) != DEFAULT.window:
            raise BundleError(
                f"the tokenizer gave {len(rows[-1])} tokens for a window of {DEFAULT.window}: its graph does not fit "
                "this runtime, export the model again"
            )
        yield
    return np.array(merge_tokens(windows, rows), np.int64)


def speaker_voice(encoder: Graph, audio: np.ndarray, tokens: np.ndarray) -> Voice:
    """The last 3 s of a recording, as the prefix of every acoustic window; a shorter one is repeated.

    ``tokens`` (t) are the recording's own. Audio past the last whole token is left out, so that tokens
    and codes stay aligned. Raises AudioError for less than one token of audio.
    """
    whole = len(audio) // TOKEN_SAMPLES
    if whole < 1:
        raise AudioError(
            f"a speaker recording of {len(audio) / SAMPLE_RATE_HZ:.3f} s is too short: give at least 1 s"
        )
    chosen = np.array(speaker_indices(whole))
    by_token = audio[: whole * TOKEN_SAMPLES].reshape(whole, TOKEN_SAMPLES)
    return Voice(tokens[chosen], codec.encode(encoder, by_token[chosen].reshape(-1)))

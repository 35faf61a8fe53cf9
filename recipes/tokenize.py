"""Recordings to tokens exactly as the runtime does it: its windows, its padding, its joins (paper section 3.4)."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from speechssm.runtime.windows import merge_tokens, pad_ranges, prompt_windows


def tokenize(graph: onnxruntime.InferenceSession, audio: NDArray[np.float32]) -> NDArray[np.int64]:
    """Tokens (t) int64, t = ceil(n/640), of audio (n) float32 in [-1, 1] at 16 kHz."""
    windows = prompt_windows(len(audio))
    rows = []
    for window in windows:
        parts = [audio[window.start : window.end]]
        parts += [audio[part.start : part.stop] for part in pad_ranges(window.end, window.pad)]
        rows.append(graph.run(["tokens"], {"audio": np.concatenate(parts)[None]})[0][0].tolist())
    return np.array(merge_tokens(windows, rows), np.int64)

"""Whisper's log-mel features (arXiv 2212.04356, section 2.2), which S3-style tokenizers read, as graph nodes.

frames of 400 samples every 160, reflected at both ends, Hann window, power spectrum
mel filters on Slaney's scale, each of unit area
x = log10(max(mel, 1e-10));  x = max(x, max(x) - 8);  (x + 4) / 4
"""

from __future__ import annotations

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_SAMPLES

from ..graphs.builder import GraphBuilder

FRAME, HOP = 400, 160
"""Samples of a frame, and between frames: 100 Hz."""
BINS = FRAME // 2 + 1
_LINEAR_HZ, _LOG_STEP = 200 / 3, np.log(6.4) / 27
_BREAK_HZ, _BREAK_MEL = 1000.0, 15.0


def mel_filters(mels: int) -> np.ndarray:
    """Slaney's triangular filters (mels, 201) float32 from 0 Hz to 8 kHz, each of unit area."""
    top = _BREAK_MEL + np.log(SAMPLE_RATE_HZ / 2 / _BREAK_HZ) / _LOG_STEP
    points = np.linspace(0.0, top, mels + 2)
    hz = np.where(
        points < _BREAK_MEL,
        points * _LINEAR_HZ,
        _BREAK_HZ * np.exp(_LOG_STEP * (points - _BREAK_MEL)),
    )
    bins = np.linspace(0, SAMPLE_RATE_HZ / 2, BINS)
    rise = (bins - hz[:-2, None]) / (hz[1:-1] - hz[:-2])[:, None]
    fall = (hz[2:, None] - bins) / (hz[2:] - hz[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall)) * (2 / (hz[2:] - hz[:-2]))[:, None]
    made: np.ndarray = filters.astype(np.float32)
    return made


def whisper_mel(g: GraphBuilder, audio: str, mels: int) -> str:
    """audio (b,n) -> log-mel (b, mels, 4t), t = ceil(n/640); zeros fill the last token.

    Uses operators that mean the same from opset 13 on.
    """
    with g.scope("log_mel"):
        size = g.op("Shape", audio)
        n = g.op("Slice", size, g.const([1]), g.const([2]))
        short = g.op("Mod", g.op("Neg", n), g.const([TOKEN_SAMPLES]))
        whole = g.op("Pad", audio, g.op("Concat", g.const([0, 0, 0]), short, axis=0))
        half = FRAME // 2
        framed = g.op("Pad", whole, g.const([0, half, 0, half]), mode="reflect")
        phase = 2 * np.pi * (np.arange(FRAME) * np.arange(BINS)[:, None] % FRAME) / FRAME
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
        taps = np.concatenate([np.cos(phase), -np.sin(phase)]) * window
        spectrum = g.op(
            "Conv", g.op("Unsqueeze", framed, g.const([1])), g.const(taps[:, None]), strides=[HOP],
            kernel_shape=[FRAME],
        )  # fmt: skip
        end = np.iinfo(np.int64).max
        kept = g.op("Slice", spectrum, g.const([0]), g.const([-1]), g.const([2]))  # as Whisper drops the last
        real = g.op("Slice", kept, g.const([0]), g.const([BINS]), g.const([1]))
        imaginary = g.op("Slice", kept, g.const([BINS]), g.const([end]), g.const([1]))
        power = g.op("Add", g.op("Mul", real, real), g.op("Mul", imaginary, imaginary))
        mel = g.op("Max", g.op("MatMul", g.const(mel_filters(mels)), power), g.const(np.float32(1e-10)))
        log = g.op("Mul", g.op("Log", mel), g.const(np.float32(1 / np.log(10))))
        # Pooling, whose axes no opset moved from attribute to input.
        loudest = g.op("GlobalMaxPool", g.op("Unsqueeze", log, g.const([1])))
        loudest = g.op("Squeeze", loudest, g.const([1]))
        held = g.op("Max", log, g.op("Sub", loudest, g.const(np.float32(8))))
        return g.op(
            "Mul", g.op("Add", held, g.const(np.float32(4))), g.const(np.float32(0.25)), name="log_mel"
        )

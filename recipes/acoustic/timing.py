"""Stage ``timing``: how long the passes of a window take, beside what the machine's GEMM rate would allow.

Seeded weights of the demo shape do: time does not depend on values. Every figure is a median of passes that
alternate between window lengths; the CPU time beside it shows whether other work had the cores.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import numpy as np
import torch

from speechssm.axes import TOKEN_FRAMES, TOKEN_RATE_HZ
from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS, AcousticShape
from speechssm.engines.ort import OrtGraph
from speechssm.export.models.acoustic import Acoustic
from speechssm.runtime.acoustic import SCHEDULES, Voice, WindowRow, decode_windows, graph_pass
from speechssm.runtime.random import acoustic_uniforms

from .graph import open_graph

BUCKETS = (50, 100, 200, 400, 750)
"""Window lengths in tokens: the ramp's, then the full window."""
HOP_SECONDS = 26.0
"""New speech of a full window: 30 s less the overlap."""


def flops(shape: AcousticShape, tokens: int) -> float:
    """Floating-point operations of the matrix products of one pass over a window of ``tokens``.

    Attention counts the keys a frame may reach, not those that blocks of them compute and mask.
    """
    d, prompt, window = shape.width, shape.prompt_frames, tokens * TOKEN_FRAMES
    dense = 4 * d * shape.ff_width + 4 * d * d + 3 * d * d + d * shape.kernel
    keys = window if shape.radius is None else min(window, 2 * shape.radius + 1)
    attention = 2 * d * (prompt * prompt + window * (prompt + keys))
    ends = (prompt + window) * shape.levels * shape.code_width * d + window * shape.code_width * (
        d + shape.codes
    )
    return 2.0 * (shape.layers * (dense * (prompt + window) + attention) + ends)


def gemm_rate(threads: int, size: int = 1024, repeats: int = 10) -> float:
    """Best floating-point operations per second of a square float32 product in torch."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size)
    best = np.inf
    for _ in range(repeats):
        tick = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - tick)
    return 2.0 * size**3 / best


def row(shape: AcousticShape, tokens: int, seed: int) -> WindowRow:
    """A window of random tokens."""
    rng = np.random.default_rng(seed)
    voice = Voice(
        rng.integers(0, shape.vocab, shape.prompt_tokens),
        rng.integers(0, shape.codes, (shape.levels, shape.prompt_frames)),
    )
    nothing = np.zeros((shape.levels, 0), np.int64)
    return WindowRow(
        voice, rng.integers(0, shape.vocab, tokens), nothing, partial(acoustic_uniforms, seed, 0)
    )


def pass_times(graph: OrtGraph, shape: AcousticShape, rounds: int) -> dict[int, tuple[float, float]]:
    """Median wall and CPU seconds of one pass by window length."""
    run = graph_pass(graph)
    taken: dict[int, list[tuple[float, float]]] = {t: [] for t in BUCKETS}
    for i in range(rounds + 1):
        for tokens in BUCKETS:
            given = row(shape, tokens, i)
            whole = np.concatenate([given.voice.tokens, given.tokens])[None]
            frames = whole.shape[1] * TOKEN_FRAMES
            codes = np.zeros((1, shape.levels, frames), np.int64)
            known = np.zeros((1, shape.levels, frames), np.bool_)
            known[..., : shape.prompt_frames] = True
            tick, work = time.perf_counter(), time.process_time()
            run(whole, codes, known, 0, 1.0, np.zeros((1, frames), np.float32))
            if i:  # the first round warms up
                taken[tokens].append((time.perf_counter() - tick, time.process_time() - work))
    return {t: (median(w for w, _ in v), median(c for _, c in v)) for t, v in taken.items()}


def run(threads: int, rounds: int, preset: str = "demo") -> dict[str, float]:
    """Print the table and return its main figures."""
    shape = ACOUSTIC_PRESETS[preset]
    graph = open_graph(Acoustic(shape).eval(), threads=threads)
    rate = gemm_rate(threads)
    print(f"{preset}: {threads} threads, float32 products at {rate / 1e9:.0f} GFLOP/s")
    print(f"{'tokens':>7}{'ms a pass':>11}{'CPU ms':>9}{'GFLOP':>8}{'of rate':>9}")
    for tokens, (wall, work) in pass_times(graph, shape, rounds).items():
        need = flops(shape, tokens)
        print(f"{tokens:7d}{wall * 1e3:11.1f}{work * 1e3:9.1f}{need / 1e9:8.2f}{need / wall / rate:9.0%}")
    figures: dict[str, float] = {}
    for name, schedule in SCHEDULES.items():
        tick = time.perf_counter()
        decode_windows(graph_pass(graph), [row(shape, shape.max_tokens, 1)], schedule)
        figures[name] = time.perf_counter() - tick
        passes = schedule.passes(shape.levels)
        print(
            f"{name}: {passes} passes over {shape.max_tokens / TOKEN_RATE_HZ:.0f} s in {figures[name]:.2f} s,"
            f" RTF {figures[name] / HOP_SECONDS:.3f}"
        )
    return figures

"""Stage ``timing``: how long the passes of a window take, beside what the machine's GEMM rate would allow.

Seeded weights of the demo shape do: time does not depend on values. Every figure is a median of passes that
alternate between window lengths. The share of the GEMM rate is taken in CPU time, so that other work on the
machine does not show in it; the difference between the two columns says how much of that there was.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import numpy as np

from speechssm.axes import TOKEN_FRAMES, TOKEN_RATE_HZ
from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS, AcousticShape
from speechssm.export.graphs.builder import FLOAT, GraphBuilder
from speechssm.export.models.acoustic import Acoustic
from speechssm.runtime.acoustic import SCHEDULES, GraphPass, Voice, WindowRow, decode_windows
from speechssm.runtime.random import acoustic_uniforms

from .graph import open_builder, open_pass

BUCKETS = (50, 100, 200, 400, 750)
"""Window lengths in tokens: the ramp's, then the full window."""
HOP_SECONDS = 26.0
"""New speech of a full window: 30 s less the overlap."""


def flops(shape: AcousticShape, tokens: int) -> float:
    """Floating-point operations of the matrix products of one pass over a window of ``tokens``, its prompt apart.

    Attention counts the keys a frame may reach, not those that blocks of them compute and mask.
    """
    d, prompt, window = shape.width, shape.prompt_frames, tokens * TOKEN_FRAMES
    dense = 4 * d * shape.ff_width + 4 * d * d + 3 * d * d + d * shape.kernel
    keys = window if shape.radius is None else min(window, 2 * shape.radius + 1)
    attention = 2 * d * window * (prompt + keys)
    ends = window * (shape.levels * shape.code_width * d + shape.code_width * (d + shape.codes))
    return 2.0 * (shape.layers * (dense * window + attention) + ends)


def gemm_rate(threads: int, size: int = 1024, repeats: int = 30) -> float:
    """Floating-point operations per second of CPU time of a square float32 MatMul in ONNX Runtime, at best.

    The weight is constant, as in the graph: ONNX Runtime packs it once.
    """
    builder = GraphBuilder("product")
    x = builder.input("x", FLOAT, (size, size))
    weight = builder.weight("product", "weight", (size, size))
    builder.output("y", builder.op("MatMul", x, weight), FLOAT, (size, size))
    values = np.random.default_rng(0).standard_normal((2, size, size)).astype(np.float32)
    graph = open_builder(builder, {"product": {"weight": values[0]}}, threads=threads)
    best = np.inf
    for _ in range(repeats):
        tick = time.process_time()
        graph.call({"x": values[1]}, ["y"])
        best = min(best, time.process_time() - tick)
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


def pass_times(run: GraphPass, shape: AcousticShape, rounds: int) -> dict[int, tuple[float, float]]:
    """Median wall and CPU seconds of one pass by window length."""
    taken: dict[int, list[tuple[float, float]]] = {t: [] for t in BUCKETS}
    for i in range(rounds + 1):
        for tokens in BUCKETS:
            given = row(shape, tokens, i)
            frames = tokens * TOKEN_FRAMES
            codes = np.zeros((1, shape.levels, frames), np.int64)
            known = np.zeros((1, shape.levels, frames), np.bool_)
            noise = np.zeros((1, frames), np.float32)
            told = run.listen(given.voice.tokens[None], given.voice.codes[None])
            tick, work = time.perf_counter(), time.process_time()
            run(told, given.tokens[None], codes, known, 0, 1.0, noise)
            if i:  # the first round warms up
                taken[tokens].append((time.perf_counter() - tick, time.process_time() - work))
    return {t: (median(w for w, _ in v), median(c for _, c in v)) for t, v in taken.items()}


def run(threads: int, rounds: int, preset: str = "demo") -> dict[str, float]:
    """Print the table and return its main figures."""
    shape = ACOUSTIC_PRESETS[preset]
    graph = open_pass(Acoustic(shape).eval(), threads=threads)
    rate = gemm_rate(threads)
    print(f"{preset}: {threads} threads, float32 products at {rate / 1e9:.0f} GFLOP per CPU second")
    print(f"{'tokens':>7}{'ms a pass':>11}{'CPU ms':>9}{'GFLOP':>8}{'of rate':>9}")
    for tokens, (wall, work) in pass_times(graph, shape, rounds).items():
        need = flops(shape, tokens)
        print(f"{tokens:7d}{wall * 1e3:11.1f}{work * 1e3:9.1f}{need / 1e9:8.2f}{need / work / rate:9.0%}")
    figures: dict[str, float] = {}
    for name, schedule in SCHEDULES.items():
        tick, work = time.perf_counter(), time.process_time()
        decode_windows(graph, [row(shape, shape.max_tokens, 1)], schedule)
        figures[name], work = time.perf_counter() - tick, time.process_time() - work
        passes, seconds = schedule.passes(shape.levels), shape.max_tokens / TOKEN_RATE_HZ
        print(
            f"{name}: {passes} passes over {seconds:.0f} s in {figures[name]:.2f} s ({work:.2f} s of CPU),"
            f" RTF {figures[name] / HOP_SECONDS:.3f}"
        )
    return figures

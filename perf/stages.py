"""``speechssm bench roofline``: this machine's ceilings, and each stage as a share of its own limit.

A stage's limit is the longer of two times: its bytes at the measured read rate, and the operations of its
matrix products and convolutions at the measured rate of a float32 product. Operations are counted from
the graph itself, with the shapes of the call that is timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_FRAMES
from speechssm.bundle.manifest import GraphEntry
from speechssm.engines.protocol import Array
from speechssm.runtime.acoustic import DEFAULT_SCHEDULE, Told
from speechssm.runtime.windows import SPEAKER_TOKENS

from .bench.result import Cell, Plot, Section, Series, Table, measured
from .bench.run import Bench
from .bench.timing import in_turns
from .operations import count_operations

TURN_S, QUICK_TURN_S = 3.0, 0.5
"""Seconds that each stage is run for."""
ACOUSTIC_SHARE = 0.5
"""What the acoustic stage is to reach of the product rate."""


@dataclass(frozen=True)
class Call:
    """One call of a graph as the pipeline makes it."""

    stage: str
    graph: str
    inputs: dict[str, Array]
    speech_s: float
    """Seconds of speech that one such call is for."""


def run(bench: Bench) -> Section:
    """Measure and report."""
    started = time.perf_counter()
    bench.say(f"roofline: bundle {bench.bundle.manifest.name} ...")  # a bundle that is none costs no time
    machine = bench.roofline
    rows: list[tuple[Cell, ...]] = []
    shares: dict[str, float] = {}
    for call in calls(bench):
        bench.say(f"roofline: {call.stage} ...")
        path, entry = bench.bundle.graph(call.graph)
        counted = count_operations(path, call.inputs)
        graph = bench.probe(call.graph)
        outputs = [value.name for value in entry.outputs]
        job = {"call": lambda graph=graph, call=call, outputs=outputs: graph.call(call.inputs, outputs)}
        seconds = QUICK_TURN_S if bench.settings.quick else TURN_S
        spread = in_turns(job, seconds, at_least=3, clock=bench.settings.clock)["call"]
        bytes_s = counted.weight_bytes / machine.read_bytes_per_s
        flops_s = counted.flops / machine.gemm_flops_per_s
        limit = max(bytes_s, flops_s)
        shares[call.stage] = limit / spread.median
        rows.append((
            call.stage, call.graph, counted.flops / 1e9, counted.weight_bytes / 2**20, 1e3 * spread.median,
            1e3 * spread.low, 1e3 * spread.high, 1e3 * limit, "bandwidth" if bytes_s >= flops_s else "products",
            shares[call.stage], counted.flops / spread.median / 1e9, 1e3 * spread.median / call.speech_s,
        ))  # fmt: skip
    ceilings = asdict(machine)
    return Section(
        name="roofline",
        title="Roofline: this machine, and each stage's share of its limit",
        about=(
            f"Best of several passes with {machine.threads} threads, piece by piece: reading and copying buffers of "
            "256 MiB a thread, a product of two 512 x 512 float32 matrices by numpy. A stage's operations are those of "
            "its products and convolutions, counted in its graph at the shapes of the call; everything else a "
            f"stage does (norms, softmax, sampling, copies) is overhead here. {bench.clock_words}"
        ),
        seconds=time.perf_counter() - started,
        figures=(
            measured("read bandwidth", machine.read_bytes_per_s / 1e9, "GB/s"),
            measured("copy bandwidth (read and written)", machine.copy_bytes_per_s / 1e9, "GB/s"),
            measured("float32 product", machine.gemm_flops_per_s / 1e9, "GFLOP/s"),
            *(
                measured(
                    f"{stage}: share of its limit", share, "",
                    least=ACOUSTIC_SHARE if stage.startswith("acoustic pass") else None,
                )
                for stage, share in shares.items()
            ),
        ),
        tables=(
            Table(
                name="stage-limits", title="Stages against their limits", rows=tuple(rows),
                columns=(
                    "stage", "graph", "GFLOP", "weights MiB", "ms", "p10", "p90", "limit ms", "bound by",
                    "share of limit", "GFLOP/s", "ms per second of speech",
                ),
            ),
        ),
        plots=(
            Plot(
                name="stage-limits", title="Share of its own limit, by stage", x_label="", y_label="share", kind="bars",
                series=(
                    Series(
                        name="share", x=tuple(s.replace(", ", "\n") for s in shares), y=tuple(shares.values())
                    ),
                ),
            ),
        ),
        facts={"ceilings": ceilings},
    )  # fmt: skip


def calls(bench: Bench) -> Iterator[Call]:
    """Calls of every graph the bundle has, with random inputs of the shapes the pipeline gives."""
    manifest = bench.bundle.manifest
    rng = np.random.default_rng(0)
    for rows in (1, 16):
        step = _zeros(manifest.graphs["lm_step"], {"b": rows})
        step["active"][:] = True
        step["temperature"][:] = 1
        step["top_p"][:] = 1
        yield Call(f"LM step, {rows} rows", "lm_step", step, rows / 25)
    if not manifest.speaks:
        return
    assert manifest.acoustic
    assert manifest.codec
    chunk = _zeros(manifest.graphs["lm_chunk"], {"b": 1, "t": 128})
    chunk["lengths"][:] = 128
    yield Call("LM prefill, 128 tokens", "lm_chunk", chunk, 128 / 25)
    audio = (0.1 * rng.standard_normal((1, 10 * SAMPLE_RATE_HZ))).astype(np.float32)
    yield Call("tokenize, 10 s", "tokenizer", {"audio": audio}, 10)
    levels, codes = manifest.codec.shape.levels, manifest.codec.shape.codes
    vocab, prompt = manifest.acoustic.shape.vocab, SPEAKER_TOKENS
    for tokens, rows in ((50, 1), (manifest.windows.window_tokens, 1), (manifest.windows.window_tokens, 2)):
        frames = TOKEN_FRAMES * tokens
        spoken: dict[str, Array] = {
            "tokens": rng.integers(0, vocab, (rows, prompt)),
            "codes": rng.integers(0, codes, (rows, levels, TOKEN_FRAMES * prompt)),
        }
        told = bench.probe("acoustic_prompt").call(spoken, Told._fields)
        if rows == 1 and tokens == 50:
            yield Call("acoustic prompt, 3 s", "acoustic_prompt", spoken, manifest.windows.window_tokens / 25)
        inputs: dict[str, Array] = {
            "tokens": rng.integers(0, vocab, (rows, tokens)),
            "codes": rng.integers(0, codes, (rows, levels, frames)),
            "known": np.zeros((rows, levels, frames), np.bool_),
            "level": np.array(0, np.int64),
            "temperature": np.array(1, np.float32),
            "noise": rng.random((rows, frames), np.float32),
            **dict(zip(Told._fields, told, strict=True)),
        }
        passes = DEFAULT_SCHEDULE.passes(levels)
        many = "" if rows == 1 else f", {rows} windows"
        yield Call(
            f"acoustic pass, {tokens / 25:.0f} s{many}", "acoustic", inputs, rows * tokens / 25 / passes
        )
    decode = _zeros(manifest.graphs["codec_decode"], {"b": 1, "f": 100})
    decode["codes"] = rng.integers(0, codes, (1, levels, 100))
    yield Call("codec decode, 2 s", "codec_decode", decode, 2)


def _zeros(entry: GraphEntry, sizes: dict[str, int]) -> dict[str, Array]:
    """Inputs of a graph; axes that are letters have the given sizes, a growing cache that of one block."""
    sizes = {"s": next((tensor.shape[0] for tensor in entry.state if tensor.grows), 0)} | sizes
    return {
        v.name: np.zeros([sizes[a] if isinstance(a, str) else a for a in v.axes], np.dtype(v.dtype))
        for v in entry.inputs
    }

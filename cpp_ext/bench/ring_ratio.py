"""A step of many rows on a processor: attention as nodes against attention as one operator, in one run.

    python -m speechssm.cpp_ext.bench.ring_ratio --shape 40m --rows 56
    python -m speechssm.cpp_ext.bench.ring_ratio --shape 2b-layer --rows 64
    python -m speechssm.cpp_ext.bench.ring_ratio --shape 40m --rows 1 --tokens 256     a chunk of the prefill

Three forms of one step with the same weights, state and tokens, all with the native library (so the
recurrence is the same in each), repetitions in turns:

    copied     nodes; every ring read from one buffer and written to another
    in place   nodes; every ring bound to its input and its output, as sessions bind it
    operator   RingAttend, rings in place

A chunk has two forms, nodes (a Scan over the tokens) and operator; its rings go from one buffer to another.
"ring copies" is what ``copied`` takes over ``in place``. Times of one thread are processor time, so that
neighbours on the machine cost no more than caches and memory traffic; of several, time on the wall.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from speechssm.bundle import StateTensor
from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.cpp_ext import build
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.graphs.lm import build_lm_chunk, build_lm_step
from speechssm.export.graphs.lm_weights import griffin_weights
from speechssm.export.models.griffin import lm_state
from speechssm.export.package import write_graph, write_parts

SHAPES = {
    "40m": LMShape(
        vocab=4096, width=512, lru_width=512, heads=8, kv_heads=1, head_dim=64, window=512, mlp_width=1536,
        blocks=griffin_blocks(12),
    ),
    "40m-mha": LMShape(
        vocab=4096, width=512, lru_width=512, heads=8, kv_heads=8, head_dim=64, window=512, mlp_width=1536,
        blocks=griffin_blocks(12),
    ),
    "2b-layer": LMShape(
        vocab=512, width=2560, lru_width=2560, heads=10, kv_heads=1, head_dim=256, window=2048,
        mlp_width=7680, blocks=("attention",), rope="none",
    ),
}  # fmt: skip
"""The shape of ``bench lm``, one with as many key/value heads as query heads, and one attention layer of 2b."""


def session(path: Path, library: Path, threads: int) -> ort.InferenceSession:
    """A CPU session with the native operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Three sessions take turns: the threads of the other two must not spin meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def filled(s: StateTensor, rows: int, position: int, rng: np.random.Generator) -> np.ndarray:
    """One state tensor of rows that have been running for a while."""
    if s.kind == "position":
        return np.full(rows, position, np.int64)
    if s.dtype == "int8":
        return rng.integers(-127, 128, (rows, *s.shape), dtype=np.int8)
    scale = np.float32(0.01 if s.kind == "scale" else 0.3)
    array = scale * rng.standard_normal((rows, *s.shape), dtype=np.float32)
    return np.abs(array).astype(s.dtype) if s.kind == "scale" else array.astype(s.dtype)


def bind(run: ort.InferenceSession, shape: LMShape, rows: int, position: int, *, copies: bool) -> Any:
    """Inputs and outputs of one step past the window, the same for every form."""
    rng = np.random.default_rng(0)
    binding = run.io_binding()
    feeds = {
        "token": rng.integers(0, shape.vocab, rows), "active": np.ones(rows, bool),
        "temperature": np.ones(rows, np.float32), "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32), "uniform": rng.random(rows, dtype=np.float32),
    }  # fmt: skip
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for s in lm_state(shape):
        array = filled(s, rows, position, rng)
        held = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(f"in_{s.name}", held)
        alias = s.in_place and not copies
        binding.bind_ortvalue_output(
            f"out_{s.name}", held if alias else ort.OrtValue.ortvalue_from_numpy(np.empty_like(array))
        )
    for name in ("token_out", "logprob", "health"):
        binding.bind_output(name)
    return binding


def measure(
    name: str, rows: int, ring: str, threads: int, repeats: int, position: int | None
) -> dict[str, Any]:
    """Milliseconds a step of each form, median and fastest, and what the forms differ by."""
    shape = SHAPES[name].model_copy(update={"ring": ring})
    at = 3 * shape.window if position is None else position
    library = build.build("host") / build.library_file("ort")
    clock = time.process_time if threads == 1 else time.perf_counter
    result: dict[str, Any] = {"shape": name, "rows": rows, "ring": ring, "threads": threads, "position": at}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        builders = {"nodes": build_lm_step(shape), "operator": build_lm_step(shape, ring_op=True)}
        write_parts(folder, builders, {"lm": griffin_weights(shape, seeded_griffin(shape, 0))})
        files = {n: folder / write_graph(folder, n, b, lm_state(shape)).file for n, b in builders.items()}
        runs = {n: session(path, library, threads) for n, path in files.items()}
        forms = {"copied": ("nodes", True), "in place": ("nodes", False), "operator": ("operator", False)}
        # One form's state at a time would be kinder to memory, but forms have to take turns.
        bound = {f: bind(runs[n], shape, rows, at, copies=copies) for f, (n, copies) in forms.items()}
        seconds: dict[str, list[float]] = {f: [] for f in forms}
        tokens: dict[str, list[int]] = {}
        for _ in range(repeats + 1):  # the first of each is not counted
            for form, (graph, _copies) in forms.items():
                start = clock()
                runs[graph].run_with_iobinding(bound[form])
                seconds[form].append(clock() - start)
                tokens.setdefault(form, bound[form].get_outputs()[-3].numpy().tolist())
    for form, times in seconds.items():
        key = form.replace(" ", "_")
        result[f"{key}_median_ms"] = 1e3 * float(np.median(times[1:]))
        result[f"{key}_fastest_ms"] = 1e3 * min(times[1:])
    result["ring_copies_share"] = 1 - result["in_place_median_ms"] / result["copied_median_ms"]
    result["in_place_over_operator"] = result["in_place_median_ms"] / result["operator_median_ms"]
    result["same_tokens"] = tokens["in place"] == tokens["operator"] == tokens["copied"]
    return result


def measure_chunk(name: str, rows: int, ring: str, threads: int, repeats: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of a prefill chunk past the window, by nodes and by the operator."""
    shape = SHAPES[name].model_copy(update={"ring": ring})
    library = build.build("host") / build.library_file("ort")
    clock = time.process_time if threads == 1 else time.perf_counter
    result: dict[str, Any] = {"shape": name, "rows": rows, "ring": ring, "threads": threads, "tokens": tokens}
    rng = np.random.default_rng(0)
    feeds = {f"in_{s.name}": filled(s, rows, 3 * shape.window, rng) for s in lm_state(shape)}
    feeds |= {"tokens": rng.integers(0, shape.vocab, (rows, tokens)), "lengths": np.full(rows, tokens)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        builders = {"nodes": build_lm_chunk(shape), "operator": build_lm_chunk(shape, ring_op=True)}
        write_parts(folder, builders, {"lm": griffin_weights(shape, seeded_griffin(shape, 0))})
        runs = {
            n: session(folder / write_graph(folder, n, b, lm_state(shape)).file, library, threads)
            for n, b in builders.items()
        }
        seconds: dict[str, list[float]] = {n: [] for n in runs}
        for _ in range(repeats + 1):
            for n, run in runs.items():
                start = clock()
                run.run(None, feeds)
                seconds[n].append(clock() - start)
    for n, times in seconds.items():
        result[f"{n}_median_ms"] = 1e3 * float(np.median(times[1:]))
        result[f"{n}_fastest_ms"] = 1e3 * min(times[1:])
    result["nodes_over_operator"] = result["nodes_median_ms"] / result["operator_median_ms"]
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="40m")
    parser.add_argument("--ring", choices=("float32", "float16", "int8"), default="float32")
    for name, default in (("rows", 56), ("threads", 1), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--position", type=int, help="of every row; three windows when not given")
    parser.add_argument("--tokens", type=int, help="measure a prefill chunk of as many tokens")
    chosen = parser.parse_args()
    if chosen.tokens:
        result = measure_chunk(
            chosen.shape, chosen.rows, chosen.ring, chosen.threads, chosen.repeats, chosen.tokens
        )
        print(f"onnxruntime {ort.__version__}, {chosen.shape}, {chosen.rows} rows of {chosen.tokens} tokens")
        for form in ("nodes", "operator"):
            print(f"{form:>9}: {result[f'{form}_median_ms']:8.2f} ms median")
        print(f"nodes over operator: {result['nodes_over_operator']:.2f}")
        print(json.dumps(result))
        return
    result = measure(chosen.shape, chosen.rows, chosen.ring, chosen.threads, chosen.repeats, chosen.position)
    print(f"onnxruntime {ort.__version__}, {chosen.shape}, {chosen.rows} rows, {chosen.ring} rings")
    for form in ("copied", "in_place", "operator"):
        print(
            f"{form:>9}: {result[f'{form}_median_ms']:8.2f} ms median, {result[f'{form}_fastest_ms']:8.2f} fastest"
        )
    print(f"ring copies: {result['ring_copies_share']:.1%} of a step that makes them")
    print(
        f"in place over operator: {result['in_place_over_operator']:.2f}, same tokens: {result['same_tokens']}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()

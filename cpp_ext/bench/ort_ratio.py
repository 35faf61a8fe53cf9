"""The RG-LRU node in ONNX Runtime on a processor: native library against the ONNX Scan, in one run.

Both sessions run the same model file with the same inputs, gates included; repetitions alternate
between them, so that a slow moment of the machine falls on both. The last line is one JSON object.

    python -m speechssm.cpp_ext.bench.ort_ratio --width 1024 --tokens 1024 --rows 1 --threads 1
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from speechssm.cpp_ext import build
from speechssm.export.graphs.builder import FLOAT, INT64, GraphBuilder
from speechssm.export.graphs.rglru_function import rglru_scan


def scan_model() -> bytes:
    """One RGLRUScan node with its function bodies."""
    g = GraphBuilder("scan")
    streams = [g.input(n, FLOAT, ("t", "b", "e")) for n in ("x", "gate_x", "gate_a")]
    decay, state = g.input("decay", FLOAT, ("e",)), g.input("state", FLOAT, ("b", "e"))
    position, lengths = g.input("position", INT64, ("b",)), g.input("lengths", INT64, ("b",))
    y, out = rglru_scan(g, streams[0], streams[1], streams[2], decay, state, position, lengths)
    g.output("y", y, FLOAT, ("t", "b", "e"))
    g.output("state_out", out, FLOAT, ("b", "e"))
    return bytes(g.model().SerializeToString())


def session(model: bytes, library: Path | None, threads: int) -> ort.InferenceSession:
    """A CPU session, with the native ops when ``library`` is given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(tokens: int, rows: int, width: int, threads: int, repeats: int) -> dict[str, float]:
    """Milliseconds per run, median and fastest, with and without the library; their largest difference."""
    rng = np.random.default_rng()
    radius = np.sqrt(rng.uniform(0.9**2, 0.999**2, width))
    feeds = {
        n: rng.standard_normal((tokens, rows, width)).astype(np.float32) for n in ("x", "gate_x", "gate_a")
    }
    feeds |= {"decay": (8 * np.log(radius)).astype(np.float32)}
    feeds |= {"state": rng.standard_normal((rows, width)).astype(np.float32)}
    feeds |= {"position": np.ones(rows, np.int64), "lengths": np.full(rows, tokens, np.int64)}
    model = scan_model()
    library = build.build("host") / build.library_file("ort")
    sessions = {"native": session(model, library, threads), "scan": session(model, None, threads)}
    results = {name: s.run(None, feeds) for name, s in sessions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, s in sessions.items():
            start = time.perf_counter()
            s.run(None, feeds)
            seconds[name].append(time.perf_counter() - start)
    out = {f"{n}_median_ms": 1e3 * float(np.median(v)) for n, v in seconds.items()}
    out |= {f"{n}_fastest_ms": 1e3 * min(v) for n, v in seconds.items()}
    out["ratio_median"] = out["scan_median_ms"] / out["native_median_ms"]
    out["ratio_fastest"] = out["scan_fastest_ms"] / out["native_fastest_ms"]
    out["largest_difference"] = float(np.abs(results["native"][0] - results["scan"][0]).max())
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("tokens", 1024), ("rows", 1), ("width", 1024), ("threads", 1), ("repeats", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = vars(parser.parse_args())
    result = measure(**chosen)
    print(f"onnxruntime {ort.__version__}, {platform.machine()}, {chosen}")
    for name in ("native", "scan"):
        median, fastest = (result[f"{name}_{which}_ms"] for which in ("median", "fastest"))
        print(f"{name:>7}: {median:8.3f} ms median, {fastest:8.3f} fastest")
    print(f"  ratio: {result['ratio_median']:8.2f}x median, {result['ratio_fastest']:8.2f}x fastest")
    print(json.dumps(chosen | result))


if __name__ == "__main__":
    main()

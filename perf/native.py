"""The recurrence on the compiled operators against the ONNX functions of the same names, in one run.

    python -m speechssm.perf.native parity BUNDLE     the same graphs with and without the library
    python -m speechssm.perf.native speed             one node, and its share of prefill, at width 1 024

``parity`` feeds both the same tokens for 16 minutes and compares every state tensor at every step, then lets
both sample with one seed and says where they part. ``speed`` times them in turns (A B A B).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import Bundle, GraphEntry, open_bundle
from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.cpp_ext import build
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.runtime.lm import LanguageModel, LMRows
from speechssm.runtime.settings import SamplerSettings

STEPS = 24_000
"""16 minutes."""
WIDE = LMShape(
    vocab=512, width=1024, lru_width=1024, heads=8, kv_heads=1, head_dim=128, window=256, mlp_width=3072,
    blocks=griffin_blocks(3), rope="none",
)  # fmt: skip
"""One group of layers (two recurrent, one attention) of the width the node is measured at."""


def library() -> Path:
    """The operators for ONNX Runtime, compiled if need be."""
    return build.build("host") / build.library_file("ort")


def pair(path: Path, entry: GraphEntry, name: str, threads: int = 1) -> dict[str, OrtGraph]:
    """One graph with and without the library."""
    return {
        "native": OrtGraph(name, path, entry, OrtOptions(threads=threads, custom_ops=library())),
        "function": OrtGraph(name, path, entry, OrtOptions(threads=threads)),
    }


def parity(bundle: Bundle, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Largest difference of a state tensor under the same tokens, and the first token at which samples part."""
    path, entry = bundle.graph("lm_step")
    part = bundle.manifest.lm
    graphs = pair(path, entry, "lm_step")

    def rows(graph: OrtGraph) -> LMRows:
        lm = LanguageModel(graph, lambda: graph, entry.state, part.shape.vocab, part.k_max, float("inf"))
        pool = LMRows(lm, 1)
        pool.start(0, 1, SamplerSettings(), seed)
        pool.active[:] = True
        return pool

    forced = np.random.default_rng(seed).integers(0, part.shape.vocab, steps)
    pools = {name: rows(graph) for name, graph in graphs.items()}
    largest: dict[str, float] = {}
    for token in forced:
        for pool in pools.values():
            pool._token[0] = token
            pool.step()
        _compare(pools["native"].state.current, pools["function"].state.current, largest)
    said = {}
    for name, graph in graphs.items():
        pool = rows(graph)
        said[name] = [int(pool.step().tokens[0]) for _ in range(steps)]
    parted = next((i for i, two in enumerate(zip(*said.values(), strict=True)) if two[0] != two[1]), None)
    return {
        "bundle": bundle.manifest.name,
        "steps": steps,
        "largest_state_difference": max(largest.values()),
        "by_kind": {
            kind: max(v for k, v in largest.items() if k.endswith(kind))
            for kind in ("lru", "conv", "key", "value")
            if any(k.endswith(kind) for k in largest)
        },
        "first_token_that_differs": parted,
    }


def _compare(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], largest: dict[str, float]
) -> None:
    for name, array in one.items():
        if array.dtype.kind == "f":
            difference = float(np.abs(array - other[name]).max())
            # NaN compares false, and must not be lost.
            largest[name] = max(largest.get(name, 0.0), difference if difference == difference else np.inf)


def speed(tokens: int = 1024, repeats: int = 7, threads: int = 1) -> dict[str, Any]:
    """Milliseconds of the node and of a prefill chunk with and without the library, and the node's share."""
    from speechssm.cpp_ext.bench.ort_ratio import measure

    node = measure(tokens, 1, WIDE.lru_width, threads, 4 * repeats)
    with tempfile.TemporaryDirectory() as folder:
        path, entry = _chunk_graph(Path(folder))
        graphs = pair(path, entry, "lm_chunk", threads)
        inputs = {
            v.name: np.zeros([a if isinstance(a, int) else {"b": 1, "t": tokens}[a] for a in v.axes], v.dtype)
            for v in entry.inputs
        }
        inputs["tokens"] = np.random.default_rng(0).integers(0, WIDE.vocab, (1, tokens))
        inputs["lengths"][:] = tokens
        names = [v.name for v in entry.outputs]
        chunk = {name: _fastest(times) for name, times in _in_turns(graphs, inputs, names, repeats).items()}
    layers = WIDE.blocks.count("recurrent")
    node_ms = {"native": node["native_fastest_ms"], "function": node["scan_fastest_ms"]}
    return {
        "width": WIDE.lru_width,
        "tokens": tokens,
        "threads": threads,
        "node_ms": node_ms,
        "node_ratio": node_ms["function"] / node_ms["native"],
        "chunk_ms": chunk,
        "chunk_ratio": chunk["function"] / chunk["native"],
        "share_of_prefill": {name: layers * node_ms[name] / chunk[name] for name in chunk},
        "largest_difference": node["largest_difference"],
    }


def _in_turns(
    graphs: Mapping[str, OrtGraph], inputs: Mapping[str, np.ndarray], names: Sequence[str], repeats: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(repeats + 1):
        for name, graph in graphs.items():
            started = time.perf_counter()
            graph.call(inputs, names)
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: kept[1:] for name, kept in times.items()}


def _fastest(times: list[float]) -> float:
    return min(times)


def _chunk_graph(folder: Path) -> tuple[Path, GraphEntry]:
    from speechssm.export.checkpoints.seeded import seeded_griffin
    from speechssm.export.graphs.lm import build_lm_chunk
    from speechssm.export.graphs.lm_weights import griffin_weights
    from speechssm.export.models.griffin import lm_state
    from speechssm.export.package import write_graph, write_parts

    builder = build_lm_chunk(WIDE)
    write_parts(folder, {"lm_chunk": builder}, {"lm": griffin_weights(WIDE, seeded_griffin(WIDE, 0))})
    entry = write_graph(folder, "lm_chunk", builder, lm_state(WIDE))
    return folder / entry.file, entry


def main() -> None:
    """Command line; the last line printed is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    compare = what.add_parser("parity")
    compare.add_argument("bundle", type=Path)
    compare.add_argument("--steps", type=int, default=STEPS)
    timed = what.add_parser("speed")
    timed.add_argument("--tokens", type=int, default=1024)
    timed.add_argument("--repeats", type=int, default=7)
    timed.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.what == "parity":
        report = parity(open_bundle(given.bundle), given.steps)
    else:
        report = speed(given.tokens, given.repeats, given.threads)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Everything a CUDA device can show about the kernels, in one command.

    python -m speechssm.cpp_ext.gpu.run_gpu --out FOLDER        (from a checkout, after `pip install -e .`)

Builds the library, runs the tests marked gpu, then times decode step and prefill scan at the widths of
the 2B and 9B shapes for 1 to 1 024 rows, beside torch.compile of the same maths in the same run, and the
attention ring of the 2B shape for 1 to 64 rows beside torch's attention over the same ring.

How it is timed: every figure is the median of CUDA-graph replays (no launch gaps), each replay running
over several input sets that together are four times the second-level cache, so that what is measured is
memory and not the cache. "floor" is the fewest bytes (each input read once, each output written once)
over the copy bandwidth measured in this run. Small sizes are launch-bound and marked so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from speechssm.cpp_ext import build as ext
from speechssm.cpp_ext.gpu import torch_versions
from speechssm.cpp_ext.gpu.device_case import DeviceCase, random_case
from speechssm.cpp_ext.gpu.ring_case import RingCase, random_ring, torch_attend
from speechssm.cpp_ext.native import CudaLibrary, Ring

WIDTHS = (2560, 4096)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
KINDS = ("step", "scan", "ring")
RING = {"heads": 10, "kv_heads": 1, "dim": 256, "window": 2048}
RING_ROWS = (1, 4, 16, 64)
PIECES = (1, 4, 16)
"""Of version 2; 16 is what a window of 2048 is read in where there is a workspace."""
LAUNCH_S = 5e-6
"""A floor below this is less than what a launch costs."""

Work = Callable[[], Any]


def capture(work: Work) -> torch.cuda.CUDAGraph:
    """Warm ``work`` up on a side stream and capture it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def seconds(works: list[Work], repeats: int = 30) -> float:
    """Median seconds of one of ``works``, which are captured together and replayed."""
    graph = capture(lambda: [work() for work in works])
    for _ in range(5):
        graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2] / len(works)


def copy_bytes_per_s() -> float:
    """Read plus written bytes per second of a 2 GiB device copy of random data."""
    source = torch.randint(0, 255, (1 << 31,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds([lambda: target.copy_(source)])


def floor_bytes(case: DeviceCase) -> int:
    """Three streams read and one written, state read and written, decay read."""
    return 4 * case.x.numel() * case.x.element_size() + 2 * case.state.numel() * 4 + case.decay.numel() * 4


def sets_for(make: Callable[[], DeviceCase], cache_bytes: int) -> list[DeviceCase]:
    """Enough cases to be four times the cache, at most 64."""
    first = make()
    count = max(1, min(64, -(-4 * cache_bytes // floor_bytes(first))))
    return [first] + [make() for _ in range(count - 1)]


def native_works(library: CudaLibrary, cases: list[DeviceCase], kind: str, version: int) -> list[Work]:
    """One launch per case, on whatever stream is current when it runs."""
    calls = [case.call(library) for case in cases]
    run = library.step if kind == "step" else library.scan
    return [lambda c=call: run(c, torch.cuda.current_stream().cuda_stream, version) for call in calls]  # type: ignore[misc]


def torch_works(cases: list[DeviceCase], kind: str) -> list[Work]:
    """The same cases through torch.compile."""
    compiled: Callable[..., Any] = torch.compile(getattr(torch_versions, kind), dynamic=False)
    works: list[Work] = []
    for c in cases:
        if kind == "step":
            first = c.position[:, None] == 0
            parts: tuple[Any, ...] = (
                c.x[0],
                c.gate_x[0],
                c.gate_a[0],
                c.decay,
                c.state,
                first,
                torch.ones_like(first),
            )
        else:
            parts = (c.x, c.gate_x, c.gate_a, c.decay, c.state)
        works.append(lambda p=parts: compiled(*p))  # type: ignore[misc]
    return works


def time_one(
    library: CudaLibrary, kind: str, rows: int, width: int, dtype: torch.dtype, copy: float
) -> dict[str, Any]:
    """One line of the table; a figure that could not be had is None, with the reason."""
    tokens = 1 if kind == "step" else max(16, min(1024, 65536 // rows))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    chunk = 0 if kind == "step" else 128 if tokens >= 256 else 32
    cases = sets_for(lambda: random_case(tokens, rows, width, dtype, chunk=chunk), cache)
    needed = floor_bytes(cases[0])
    line: dict[str, Any] = {"kind": kind, "rows": rows, "tokens": tokens, "width": width}
    line |= {"dtype": str(dtype).removeprefix("torch."), "sets": len(cases), "floor_us": 1e6 * needed / copy}
    for version in (1, 2):
        line[f"v{version}_us"] = 1e6 * seconds(native_works(library, cases, kind, version))
    best = min(line["v1_us"], line["v2_us"])
    line["of_copy"] = line["floor_us"] / best
    line["bound"] = "launch" if needed / copy < LAUNCH_S else "memory"
    try:
        line["compile_us"] = 1e6 * seconds(torch_works(cases[: 4 if kind == "scan" else None], kind))
        line["against_compile"] = line["compile_us"] / best
    except Exception as error:  # a private torch function: its absence must not lose the other figures
        line |= {"compile_us": None, "against_compile": None, "compile_error": str(error)[:200]}
    return line


def time_ring(library: CudaLibrary, rows: int, ring: torch.dtype, copy: float) -> dict[str, Any]:
    """One attention layer's step at the 2B shape: one block a head, then a head in pieces."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    first = random_ring(rows, **RING, ring=ring)
    count = max(1, min(16, -(-4 * cache // first.floor_bytes)))
    cases = [first] + [random_ring(rows, **RING, ring=ring) for _ in range(count - 1)]
    line: dict[str, Any] = {"kind": "ring", "rows": rows, "ring": str(ring).removeprefix("torch.")}
    line |= {"sets": count, "floor_us": 1e6 * first.floor_bytes / copy}
    line["v1_us"] = 1e6 * seconds(ring_works(library, cases, 1, 1))
    for pieces in PIECES:
        line[f"pieces{pieces}_us"] = 1e6 * seconds(ring_works(library, cases, pieces, 2))
    best = min(line[f"pieces{p}_us"] for p in PIECES)
    line["of_copy"] = line["floor_us"] / best
    line["bound"] = "launch" if first.floor_bytes / copy < LAUNCH_S else "memory"
    line["torch_us"] = None
    if ring != torch.int8:
        try:
            line["torch_us"] = 1e6 * seconds([lambda c=case: torch_attend(c) for case in cases])  # type: ignore[misc]
        except Exception as error:  # what torch cannot do must not lose the other figures
            line["torch_error"] = str(error)[:200]
    return line


def ring_works(library: CudaLibrary, cases: list[RingCase], pieces: int, version: int) -> list[Work]:
    """One step per case, in place, in as many pieces."""
    calls = [case.call(library, pieces) for case in cases]

    def run(call: Ring) -> None:
        library.ring(call, torch.cuda.current_stream().cuda_stream, version)

    return [partial(run, call) for call in calls]


def print_ring(line: dict[str, Any]) -> None:
    """One row of the ring's table for people."""
    times = " ".join(f"{line[key]:>10.1f}" for key in ("v1_us", *(f"pieces{p}_us" for p in PIECES)))
    beside = f"{line['torch_us']:>10.1f}" if line["torch_us"] else f"{'--':>10}"
    print(
        f" ring {line['ring']:>9} {line['rows']:>5} {line['floor_us']:>10.1f} {times} {line['of_copy']:>7.1%} "
        f"{beside} {line['bound']}",
        flush=True,
    )


def print_line(line: dict[str, Any]) -> None:
    """One row of the table for people."""
    beside = f"{line['against_compile']:6.2f}x" if line["against_compile"] else "     --"
    print(
        f"{line['kind']:>5} {line['dtype']:>9} {line['width']:>5} {line['rows']:>5} {line['tokens']:>5} "
        f"{line['floor_us']:>10.1f} {line['v1_us']:>10.1f} {line['v2_us']:>10.1f} {line['of_copy']:>7.1%} "
        f"{beside} {line['bound']}",
        flush=True,
    )


def main() -> int:
    """Command line; the exit status is that of the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="three row counts, one width")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to time")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA device; run this on a machine with one", file=sys.stderr)
        return 1
    chosen.out.mkdir(parents=True, exist_ok=True)
    library = CudaLibrary(ext.build("cuda") / ext.library_file("cuda"))
    failed = 0
    if not chosen.no_tests:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests/cpp_ext"]
        failed = subprocess.run(command, check=False).returncode
    copy = copy_bytes_per_s()
    device = torch.cuda.get_device_properties(0)
    print(f"{device.name}, {device.multi_processor_count} multiprocessors, torch {torch.__version__}")
    print(
        f"copy {copy / 1e12:.2f} TB/s (read + written); times in microseconds, of_copy = floor / best version"
    )
    print(" kind     dtype width  rows  toks      floor         v1         v2 of_copy compile bound")
    lines = []
    for kind in (k for k in ("step", "scan") if k in chosen.kinds):
        for dtype in (torch.float32, torch.bfloat16):
            for width in WIDTHS[: 1 if chosen.quick else None]:
                for rows in (1, 64, 1024) if chosen.quick else ROWS:
                    lines.append(time_one(library, kind, rows, width, dtype, copy))
                    print_line(lines[-1])
                    torch.cuda.empty_cache()
    pieces = " ".join(f"{f'v2 in {p}':>10}" for p in PIECES)
    print(
        f" kind      ring  rows      floor         v1 {pieces} of_copy      torch bound   (v2: pieces of a head)"
    )
    for ring in (torch.float32, torch.float16, torch.int8) if "ring" in chosen.kinds else ():
        for rows in (1, 64) if chosen.quick else RING_ROWS:
            lines.append(time_ring(library, rows, ring, copy))
            print_ring(lines[-1])
            torch.cuda.empty_cache()
    report = {"device": device.name, "torch": torch.__version__, "copy_bytes_per_s": copy, "lines": lines}
    report["tests_exit"] = None if chosen.no_tests else failed
    (chosen.out / "rglru_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"report": str(chosen.out / "rglru_gpu.json"), "tests_exit": report["tests_exit"]}))
    return failed


if __name__ == "__main__":
    sys.exit(main())

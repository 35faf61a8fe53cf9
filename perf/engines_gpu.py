"""Everything about engines that needs a GPU, in one run, with a dated report.

    python -m speechssm.perf.engines_gpu --out perf/reports

Each part says what it found or why it did not run: kernels and their timings (:mod:`speechssm.cpp_ext.gpu`), the
device adapter, ONNX Runtime CUDA end to end, TensorRT and TensorRT-RTX with the plugin. Nothing reaches the network;
what a machine lacks is left out and named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.cpp_ext.build import build, library_file
from speechssm.engines.device import Device, open_device
from speechssm.errors import SpeechSSMError

PACKAGES = ("torch", "cuda-bindings", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
TARGET_OF_FLOOR = 0.75
"""Of the weight-bandwidth floor, for one row on ONNX Runtime CUDA."""
COPY_BYTES = 1 << 30

Report = dict[str, Any]


def machine() -> Report:
    """What there is."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return {"python": platform.python_version(), "packages": found}


def kernels(out: Path) -> Report:
    """The kernels' tests and timings, in a process of their own."""
    command = [sys.executable, "-m", "speechssm.cpp_ext.gpu.run_gpu", "--out", str(out), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    if done.returncode not in (0, 1) or not (out / "rglru_gpu.json").is_file():
        raise SpeechSSMError(f"run_gpu ended with {done.returncode}: {done.stderr[-500:]}")
    report: Report = json.loads((out / "rglru_gpu.json").read_text())
    return report


def device_tests() -> Report:
    """Memory, capture and replay through the adapter."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/engines"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit": done.returncode, "said": done.stdout.strip().splitlines()[-3:]}


def engine_steps(
    exports: Path,
    flavour: str,
    preset: str,
    precision: str,
    rows: int,
    steps: int,
    *,
    ring_op: bool = False,
    **more: Any,
) -> Report:
    """Build a preset's step, check its tokens against ONNX Runtime's CPU provider where small, and time it.

    A bundle that is in ``exports`` already is used as it is. ``ring_op`` exports attention as an operator, which the
    plugin has as it has the recurrence.
    """
    from speechssm.bundle import open_bundle
    from speechssm.cpp_ext.build import find_library
    from speechssm.engines.builder import build_engines, find_environment
    from speechssm.engines.index import BuildSettings
    from speechssm.engines.loading import BundleGraphs, EngineGraphs
    from speechssm.engines.ort import OrtOptions
    from speechssm.export.exporter import export_preset
    from speechssm.runtime.lm import LanguageModel

    with tempfile.TemporaryDirectory() as folder:
        engines = Path(folder) / "engines"
        stored = "bfloat16" if precision == "bfloat16" else "float32"
        bundle_folder = exports / f"{preset}-{stored}{'-ring-op' if ring_op else ''}"
        if not bundle_folder.exists():
            export_preset(preset, bundle_folder, seed=0, storage=stored, rollout=4, ring_op=ring_op)  # type: ignore[arg-type]
        bundle = open_bundle(bundle_folder)
        plugin = find_library("ort" if flavour == "onnxruntime-cuda" else "trt")
        settings = BuildSettings(engine=flavour, precision=precision, **more)  # type: ignore[arg-type]
        here = find_environment(settings.engine, plugin)
        (made,) = build_engines(bundle, settings, engines, here, graphs=["lm_step"])
        graphs = EngineGraphs(bundle, engines, plugin)
        step = graphs.open("lm_step")
        part, schema = bundle.manifest.lm, bundle.manifest.graphs["lm_step"].state
        plain = BundleGraphs(bundle, OrtOptions(threads=0))
        lm = LanguageModel(
            step, lambda: plain("lm_chunk"), schema, part.shape.vocab, part.k_max, float("inf")
        )
        pool = _pool(lm, rows)
        times, tokens = _run(pool, steps)
        weights = part.shape.matrix_parameters * (4 if precision == "float32" else 2)
        report: Report = {
            "flavour": flavour,
            "version": here.version,
            "preset": preset,
            "precision": precision,
            "rows": rows,
            "ring_op": ring_op,
            "plugin_layers": made.layers.get("PLUGIN_V3", 0),
            "engine_bytes": made.size_bytes,
            "build_s": made.seconds,
            "step_us": 1e6 * float(np.median(times)),
            "weight_bytes": weights,
            "eager_because": [b.eager_because for b in pool.bindings],
            "kernels": kernels_of(pool.step),
        }
        if preset in ("tiny", "demo"):
            reference = LanguageModel(
                plain("lm_step"),
                lambda: plain("lm_chunk"),
                schema,
                part.shape.vocab,
                part.k_max,
                float("inf"),
            )
            _, expected = _run(_pool(reference, rows), steps)
            differing = [i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b]
            report["first_step_that_differs"] = differing[0] if differing else None
        step.close()
    return report


def _pool(lm: Any, rows: int) -> Any:
    from speechssm.runtime.lm import LMRows
    from speechssm.runtime.settings import SamplerSettings

    pool = LMRows(lm, rows)
    for row in range(rows):
        pool.start(row, row % lm.vocab, SamplerSettings(), seed=row)
    pool.active[:] = True
    return pool


def _run(pool: Any, steps: int) -> tuple[list[float], list[list[int]]]:
    times, tokens = [], []
    for _ in range(steps):
        started = time.perf_counter()
        tokens.append(pool.step().tokens.tolist())
        times.append(time.perf_counter() - started)
    return times[min(20, steps // 2) :], tokens


def kernels_of(job: Callable[[], object], times: int = 4, most: int = 20) -> Report:
    """What the device ran for one call of ``job``: kernels, their time, and the largest of them by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            job()
    found = [e for e in seen.key_averages() if e.self_device_time_total > 0]
    found.sort(key=lambda e: -e.self_device_time_total)
    return {
        "count": sum(e.count for e in found) / times,
        "us": sum(e.self_device_time_total for e in found) / times,
        "largest": [
            {"name": e.key[:100], "us": e.self_device_time_total / times, "count": e.count / times}
            for e in found[:most]
        ],
    }


def copy_bandwidth(device: Device) -> float:
    """Bytes per second, read plus written, of a device copy through torch."""
    import torch

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * COPY_BYTES / (time.perf_counter() - started))
    return best


def parts(out: Path, quick: bool, exports: Path) -> list[tuple[str, Callable[[], Report]]]:
    """What is run, in order: the cheap and the likely first."""
    small = [
        (f"{flavour} {preset}{' in place' if aliased else ''}", flavour, preset, aliased)
        for flavour in ("onnxruntime-cuda", "tensorrt-rtx", "tensorrt")
        for preset in ("tiny", "demo")
        for aliased in ((False, True) if flavour != "onnxruntime-cuda" else (False,))
    ]
    made: list[tuple[str, Callable[[], Report]]] = [
        ("device", device_tests),
        ("kernels", lambda: kernels(out)),
        *(
            (name, lambda f=f, p=p, a=a: engine_steps(exports, f, p, "float32", 3, 200, aliased=a))
            for name, f, p, a in small
        ),
    ]
    for name in ("tensorrt-rtx", "tensorrt"):
        made.append(
            (
                f"{name} demo, attention by the plugin",
                lambda f=name: engine_steps(exports, f, "demo", "float32", 3, 200, ring_op=True),  # type: ignore[misc]
            )
        )
    if not quick:
        for rows in (1, 64):
            for ring_op in (False, True):
                made.append(
                    (
                        f"onnxruntime-cuda 2b, {rows} rows{', our attention' if ring_op else ''}",
                        lambda r=rows, o=ring_op: engine_steps(  # type: ignore[misc]
                            exports, "onnxruntime-cuda", "2b", "bfloat16", r, 200, ring_op=o
                        ),
                    )
                )
    return made


def main() -> int:
    """Command line; the exit status is 1 when there is no GPU or any part that ran failed its check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("perf/reports"))
    parser.add_argument("--quick", action="store_true", help="no 2b")
    parser.add_argument("--only", default="", help="parts whose name holds this")
    parser.add_argument(
        "--exports", type=Path, help="folder of exported presets, kept; a temporary one by default"
    )
    given = parser.parse_args()
    try:
        device = open_device()
    except SpeechSSMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    report: Report = {"date": datetime.date.today().isoformat(), "gpu": device.name} | machine()
    report["architecture"] = device.architecture
    wrong = False
    for preset in ("cuda", "tensorrt"):
        try:
            build(preset)
        except SpeechSSMError as error:
            report[f"build {preset}"] = {"not_run": str(error)}
    try:
        report["copy_bytes_per_s"] = copy_bandwidth(device)
    except Exception as error:
        report["copy_bytes_per_s"] = {"not_run": str(error)}
    with tempfile.TemporaryDirectory() as work:
        for name, run in parts(Path(work), given.quick, given.exports or Path(work) / "exports"):
            if given.only not in name:
                continue
            print(f"-- {name}", flush=True)
            try:
                report[name] = run()
            except Exception as error:  # a part that fails must not lose the others
                report[name] = {"not_run": f"{type(error).__name__}: {error}"}
            floor = report[name].get("weight_bytes", 0)
            if floor and isinstance(report["copy_bytes_per_s"], float):
                of_floor = 1e6 * floor / report["copy_bytes_per_s"] / report[name]["step_us"]
                report[name] |= {"of_weight_floor": of_floor, "target": TARGET_OF_FLOOR}
            wrong |= report[name].get("first_step_that_differs") == 0
            print(json.dumps(report[name])[:2000], flush=True)
    path = given.out / f"{report['date']}-engines-{device.architecture}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: plugin and operators {library_file('trt')}, {library_file('ort')}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

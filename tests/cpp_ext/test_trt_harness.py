"""The TensorRT plugin on host launchers: serialise, deserialise, run, refuse (catalogue P3, R4)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from speechssm.cpp_ext.build import library_file, tensorrt_headers
from tests.cpp_ext.conftest import built


def run_harness(folder: Path) -> str:
    command = [str(folder / "speechssm_trt_harness"), str(folder / library_file("trt_host"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.parametrize("preset", ["harness", "sanitize"])
def test_the_plugin_does_what_tensorrt_asks_of_it(preset):
    if tensorrt_headers() is None:
        pytest.skip("needs TensorRT's headers: python -m speechssm.cpp_ext.build headers")
    said = run_harness(built(preset))
    counts = re.search(r"(\d+) passed, 0 failed", said)
    assert counts is not None
    assert int(counts[1]) > 20_000, said


def test_the_library_needs_nothing_of_tensorrt():
    """No undefined nvinfer symbol: the plugin loads in TensorRT 10, 11 and RTX alike, and without any."""
    plugin = built("harness") / library_file("trt_host")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(plugin)], capture_output=True, text=True, check=True
    )
    assert "nvinfer" not in symbols.stdout
    assert "cuda" not in symbols.stdout.lower()
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", str(plugin)], capture_output=True, text=True, check=True
    )
    assert {"getCreators", "setLoggerFinder"} <= set(exported.stdout.split())

"""The host tests once more, in a build with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechssm.cpp_ext.build import library_file
from tests.cpp_ext.conftest import built

ROOT = Path(__file__).parents[2]
HOST_TESTS = tuple(
    f"tests/cpp_ext/test_{op}_host.py" for op in ("rglru", "conv4", "ring", "linear", "sample")
)


def runtime(name: str) -> str:
    found = subprocess.run(
        ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout
    if not os.path.isabs(found.strip()):
        pytest.skip(f"the compiler has no {name} (apt-get install libasan8 or the like)")
    return found.strip()


def under_sanitizers(*command: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "SPEECHSSM_TEST_HOST_LIBRARY": str(built("sanitize") / library_file("host")),
    }
    command = (sys.executable, "-W", "ignore", *command)
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False
    )


def test_host_tests_are_clean_under_sanitizers():
    done = under_sanitizers("-m", "pytest", "-x", "-p", "no:cacheprovider", *HOST_TESTS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout


OVERFLOW = """
import ctypes, os
from pathlib import Path
import numpy as np
from tests.cpp_ext.lru_native import HostLibrary, pointer
from tests.cpp_ext.lru_reference import random_case

host = HostLibrary(Path(os.environ["SPEECHSSM_TEST_HOST_LIBRARY"]))
call, keep, _, _ = host.call_of(random_case(np.random.default_rng(), 2, 3, 999))
short = np.zeros((2, 999), np.float32)
call.state_out = pointer(short)
host.lib.speechssm_rglru_scan_host(ctypes.addressof(call), 1)
"""


def test_the_sanitizer_would_have_spoken():
    """A state one row too short, in the same build: the run must die of it."""
    done = under_sanitizers("-c", OVERFLOW)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr

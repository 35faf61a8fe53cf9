"""Native libraries for the tests, each built at most once per source digest and kept in the user's cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from speechssm.cpp_ext import build as ext
from tests.cpp_ext.lru_native import HostLibrary


def built(preset: ext.Preset) -> Path:
    """The folder of ``preset``, or a skip that says what to install."""
    if not (shutil.which("c++") and shutil.which("cmake")):
        pytest.skip("needs a C++ compiler and CMake (apt-get install g++ cmake)")
    if preset in ("cuda", "tensorrt") and not shutil.which("nvcc"):
        pytest.skip("needs nvcc (CUDA toolkit)")
    if preset in ("harness", "tensorrt") and ext.tensorrt_headers() is None:
        pytest.skip("needs TensorRT's headers: python -m speechssm.cpp_ext.build headers")
    ext.cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(ext.cache_folder() / f"{preset}.lock"):  # parallel test workers build once
        return ext.build(preset)


@pytest.fixture(scope="session")
def host() -> HostLibrary:
    chosen = os.environ.get("SPEECHSSM_TEST_HOST_LIBRARY")  # the sanitizer test points this at its own build
    return HostLibrary(Path(chosen) if chosen else built("host") / ext.library_file("host"))


@pytest.fixture(scope="session")
def library() -> Path:
    """The custom ops for ONNX Runtime on a processor."""
    return built("host") / ext.library_file("ort")

"""The double of TensorRT-RTX for the tests: loaded here, and put in the way of the worker's import."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "doubles" / "vendor"


def load_double() -> ModuleType:
    """A fresh copy of the module, so that no test sees another's settings."""
    spec = importlib.util.spec_from_file_location("tensorrt_rtx_double", FOLDER / "tensorrt_rtx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use_double(monkeypatch: pytest.MonkeyPatch, fault: str = "", version: str = "1.7.1.116") -> None:
    """Builds of this test find the double as ``tensorrt_rtx``; ``fault`` is what goes wrong in it."""
    monkeypatch.setenv("SPEECHSSM_TENSORRT_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER), prepend=":")
    monkeypatch.setenv("FAKE_TENSORRT", fault)
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)

"""``speechssm doctor``: what this machine has, what it lacks, and the command that gets it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

import speechssm
from speechssm.errors import SpeechSSMError

Finding = tuple[str, bool, str]
"""What, whether it is there, and its version or the command that gets it."""

EXTRAS = {"torch": "export", "onnx": "export", "tensorrt": "trt", "tensorrt_rtx": "rtx", "cuda-python": "gpu"}
"""Optional packages by the extra that brings them."""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Say what is installed, what is missing, and how to get it."""
    findings = [*_packages(), *_engine(), *_compiled()]
    if as_json:
        keys = ("name", "found", "detail")
        print(json.dumps([dict(zip(keys, finding, strict=True)) for finding in findings]))
        return
    for name, found, detail in findings:
        print(f"{'ok  ' if found else '-   '}{name:<24}{detail}")


def _packages() -> list[Finding]:
    system = (
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    found: list[Finding] = [("speechssm", True, speechssm.__version__), ("python", True, system)]
    for name in ("numpy", "safetensors", "soundfile", "soxr", "pydantic", "typer"):
        found.append(_package(name, "pip install speechssm"))
    for name, extra in EXTRAS.items():
        found.append(_package(name, f"pip install speechssm[{extra}]"))
    return found


def _package(name: str, command: str) -> Finding:
    try:
        return name, True, metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, False, f"missing; get it with: {command}"


def _engine() -> list[Finding]:
    from speechssm.engines.ort import import_onnxruntime, provider_names

    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _package(name, "")[1]]
    if len(both) == 2:
        return [
            (
                "onnxruntime",
                False,
                "onnxruntime and onnxruntime-gpu share one module: pip uninstall one of them",
            )
        ]
    return [
        _try(
            "onnxruntime",
            lambda: f"{import_onnxruntime().__version__}, built with {', '.join(provider_names())}",
        )
    ]


def _compiled() -> list[Finding]:
    try:
        from speechssm.cpp_ext.build import status
    except ImportError:
        return []
    return [
        (name, found, detail if found else f"{detail}; {command}")
        for name, found, detail, command in status()
    ]


def _try(name: str, look: Callable[[], str]) -> Finding:
    try:
        return name, True, look()
    except SpeechSSMError as error:
        return name, False, str(error)

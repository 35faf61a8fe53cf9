"""The stamp on a report: what was measured, with what, on what, and how busy it was."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import speechssm

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "transformers", "recurrentgemma")


def stamp(threads: int) -> dict[str, Any]:
    """Facts about machine, system and packages. Nothing that names the user, the host or a path."""
    return {
        "speechssm": speechssm.__version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "logical_cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": psutil.virtual_memory().available,
        "load_average": list(psutil.getloadavg()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "gpu": _gpu(),
    }


def _cpu() -> dict[str, Any]:
    from cpuinfo import get_cpu_info

    info = get_cpu_info()
    wanted = {
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "sve",
    }
    return {
        "name": info.get("brand_raw", platform.processor()),
        "l2_bytes": info.get("l2_cache_size"),
        "l3_bytes": info.get("l3_cache_size"),
        "features": sorted(wanted & set(info.get("flags", []))),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with ``+`` when something in it was changed; None for an installed package."""
    try:
        changed = "+" if _git("status", "--porcelain", "-uno") else ""
        return _git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    folder = str(Path(__file__).resolve().parent)
    done = subprocess.run(
        ["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _gpu() -> str | None:
    """The first CUDA device's name, or None."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return found.stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None

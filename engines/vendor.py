"""The vendors' builders, reached through a process of their own (:mod:`.tensorrt_worker`).

The Python that has TensorRT may be another one than this: ``SPEECHSSM_TENSORRT_PYTHON`` names it. Nothing
is imported here, so a crash of a vendor's library ends a child and becomes an EngineError.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssm.errors import EngineError

from .key import Flavour

PYTHON_VARIABLE = "SPEECHSSM_TENSORRT_PYTHON"
WORKER = Path(__file__).with_name("tensorrt_worker.py")
MODULES: dict[Flavour, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "trt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
"""Python module and the extra that brings it."""

Progress = Callable[[str, int, int], None]
"""Hears of a phase's name, how many of its steps are done, and how many there are."""
_LINES = 40
"""Lines of a child's own output that are kept for an error message."""


@dataclass(frozen=True)
class Vendor:
    """An installed builder."""

    flavour: Flavour
    version: str
    libraries: Path | None
    python: str


@dataclass(frozen=True)
class Built:
    """What a finished build reports."""

    layers: dict[str, int]
    seconds: float
    timing_cache: bool


def python_of_tensorrt() -> str:
    """The interpreter that has TensorRT: ``SPEECHSSM_TENSORRT_PYTHON``, else this one."""
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def find_vendor(flavour: Flavour) -> Vendor:
    """The builder of ``flavour``. Raises EngineError when it is missing or does not start."""
    module, extra = MODULES[flavour]
    python = python_of_tensorrt()
    command = [python, str(WORKER), "--probe", module]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise EngineError(
            f"{PYTHON_VARIABLE} names {python}, which cannot be run ({error.strerror}): give a Python that has {module}"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(
            f"{module} cannot be used by {python} ({_ending(done.returncode)}: {last}): run "
            f"'pip install speechssm[{extra}]', or name a Python that has it with {PYTHON_VARIABLE}"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    libraries = Path(found["libraries"]) if found["libraries"] else None
    return Vendor(flavour, found["version"], libraries, python)


def run_build(vendor: Vendor, job: dict[str, Any], what: str, progress: Progress | None = None) -> Built:
    """Build one engine as ``job`` says. ``what`` names it in messages.

    Raises EngineError with the builder's own words when it refuses, and with the signal when it crashes.
    """
    errors: list[str] = []
    plugin_lines: list[str] = []
    finished: dict[str, Any] | None = None
    with _library_links(vendor) as environment, _child(vendor, job, environment) as (child, output):
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and progress is not None:
                progress(event["phase"], event["step"], event["steps"])
            elif event["event"] == "message":
                (errors if event["level"] == "error" else plugin_lines).append(event["text"])
            elif event["event"] == "done":
                finished = event
        code = child.wait()
    if code == 0 and finished is not None:
        return Built(finished["layers"], finished["seconds"], finished["timing_cache"])
    said = "; ".join(errors) or "; ".join(output) or "it left no message"
    if code == 1:
        raise EngineError(f"{vendor.flavour} {vendor.version} refused to build {what}: {said}{_hint(said)}")
    raise EngineError(
        f"{vendor.flavour} {vendor.version} ended while building {what} ({_ending(code)}): {said}; nothing was "
        "written. Try again with smaller profiles, or with --no-plugin to see whether the plugin is the cause"
    )


def _hint(said: str) -> str:
    """What to run, for the refusals that are met most."""
    if "Plugin not found" in said or "brings no plugin" in said:
        return (
            ". The plugin library has no operator of this name and version: build it again with "
            "'speechssm ext build tensorrt', or build without it: --no-plugin"
        )
    if "ALIASED_PLUGIN_IO" in said:
        return ". State in place needs --aliased"
    if "profile" in said.lower():
        return ". Check --rows, --batch, --tokens and --frames"
    return ""


def _ending(code: int) -> str:
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"exit {code}"


@contextmanager
def _child(
    vendor: Vendor, job: dict[str, Any], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], deque[str]]]:
    """The worker at its job, and the last lines it and the vendor's libraries print. It never outlives us."""
    output: deque[str] = deque(maxlen=_LINES)
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        child = subprocess.Popen(
            [vendor.python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            errors="replace",
            env=environment,
        )
        try:
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps(job))
                child.stdin.close()
            except BrokenPipeError:  # it ended before it read its job; its exit code says why
                pass
            yield child, output
            printed.seek(0)
            output.extend(line.strip() for line in printed if line.strip())
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


@contextmanager
def _library_links(vendor: Vendor) -> Iterator[dict[str, str]]:
    """An environment in which ``libX.so`` is found where the vendor's wheel has only ``libX.so.1``.

    TensorRT-RTX's parser opens the short name at the first plugin node.
    """
    environment = dict(os.environ)
    if vendor.libraries is None:
        yield environment
        return
    with tempfile.TemporaryDirectory(prefix="speechssm-") as folder:
        for library in vendor.libraries.glob("*.so.*"):
            link = Path(folder) / f"{library.name.split('.so.')[0]}.so"
            if not link.exists():
                link.symlink_to(library.resolve())
        known = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = folder + (os.pathsep + known if known else "")
        yield environment

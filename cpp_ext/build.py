"""Build and find the native libraries: the ONNX Runtime ops, the CUDA kernels, the TensorRT plugin.

Nothing in the package needs them: graphs carry the same maths as ONNX functions. They are built on
request from the sources beside this file into a cache folder named by the digest of those sources, so
a changed source is a new folder and an old library is never picked up by mistake. A library is only
ever taken from there, never from a bundle: it is executable code.

    python -m speechssm.cpp_ext.build host
    python -m speechssm.cpp_ext.build status
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from speechssm.errors import EngineError

Preset = Literal["host", "harness", "sanitize", "cuda", "tensorrt"]
"""``host`` processor only; ``harness`` with the plugin on host launchers and its test driver;
``sanitize`` under ASan and UBSan, with the harness where TensorRT's headers are; ``cuda`` with kernels;
``tensorrt`` with the plugin on them."""

Library = Literal["host", "ort", "cuda", "trt", "trt_host"]
"""``host`` launchers for ctypes, ``ort`` custom ops, ``cuda`` kernels, ``trt`` plugin,
``trt_host`` the plugin on host launchers (tests only)."""

SOURCES = Path(__file__).resolve().parent
CACHE_VARIABLE = "SPEECHSSM_CPP_EXT"
HEADER_REQUIREMENTS = SOURCES / "requirements-trt-headers.txt"

_SUFFIXES = {".hpp", ".h", ".cpp", ".cu", ".cuh", ".cmake"}
_TOP = {"CMakeLists.txt", "CMakePresets.json"}
_FALLBACKS: tuple[Preset, ...] = ("tensorrt", "cuda", "host", "harness")


class Component(NamedTuple):
    """One line of ``speechssm doctor``."""

    component: str
    found: bool
    detail: str
    command: str
    """What to run to get it; empty when it is found."""


def cache_folder() -> Path:
    """Where builds live: ``$SPEECHSSM_CPP_EXT``, else ``~/.cache/speechssm/cpp_ext``."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "speechssm" / "cpp_ext"


def source_files() -> list[Path]:
    """Every file a build reads, sorted; the digest is taken over these."""
    files = (p for p in SOURCES.rglob("*") if p.is_file() and (p.suffix in _SUFFIXES or p.name in _TOP))
    return sorted(p for p in files if "build" not in p.relative_to(SOURCES).parts[:-1])


def digest(preset: Preset) -> str:
    """sha256 over sources, preset and platform, shortened. Compilers are recorded, not part of the key."""
    variant = f"{preset}+harness" if preset == "sanitize" and tensorrt_headers() else preset
    seal = hashlib.sha256(f"{variant}\n{sys.platform}\n{platform.machine()}\n".encode())
    for path in source_files():
        content = path.read_bytes()
        seal.update(f"{path.relative_to(SOURCES).as_posix()}\n{len(content)}\n".encode())
        seal.update(content)
    return seal.hexdigest()[:20]


def build_folder(preset: Preset) -> Path:
    """Where ``preset`` of the present sources is, or would be."""
    return cache_folder() / f"{preset}-{digest(preset)}"


def build(preset: Preset = "host", *, jobs: int | None = None) -> Path:
    """Build ``preset`` unless it is in the cache; returns the folder of its libraries.

    An interrupted build leaves nothing behind, and of two builders at once the first wins.
    Raises :class:`EngineError` naming the missing tool and the command that gets it, or with the end
    of the compiler's output.
    """
    if preset not in get_args(Preset):
        raise EngineError(f"there is no preset {preset!r}: choose one of {', '.join(get_args(Preset))}")
    final = build_folder(preset)
    if _intact(final):
        return final
    _require_tools(preset)
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{preset}-", suffix=".partial", dir=root))
    except OSError as error:
        raise EngineError(
            f"cannot build in {root} ({error}): choose a writable folder with {CACHE_VARIABLE}=FOLDER"
        ) from error
    try:
        tree, out = work / "tree", work / "out"
        _run(_configure_command(preset, tree), preset)
        compile_all = [
            "cmake",
            "--build",
            str(tree),
            "--verbose",
            "--parallel",
            str(jobs or os.cpu_count() or 1),
        ]
        log = _run(compile_all, preset)
        out.mkdir()
        (out / "build.log").write_text(log)  # compiler commands and the device compiler's resource report
        files = {p.name: p for p in tree.iterdir() if p.name.startswith(("libspeechssm_", "speechssm_"))}
        for name, path in files.items():
            shutil.copy2(path, out / name)
        record = {
            "preset": preset,
            "files": {name: _sha256(out / name) for name in sorted(files)},
            "compilers": {tool: _version(tool) for tool in ("c++", "nvcc", "cmake") if shutil.which(tool)},
        }
        (out / "build.json").write_text(json.dumps(record, indent=1) + "\n")
        if final.exists() and not _intact(final):
            shutil.rmtree(final)  # altered since it was built
        try:
            out.rename(final)
        except OSError:
            if not _intact(final):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def find_library(name: Library = "ort") -> Path | None:
    """A built library of the present sources, or None. Never builds, needs no compiler.

    Among several presets the one with most in it wins. A file that no longer has the digest its build
    recorded is not returned.
    """
    for preset in _FALLBACKS:
        folder = build_folder(preset)
        path = folder / library_file(name)
        if path.is_file() and _intact(folder):
            return path
    return None


def operators() -> Path:
    """The operators for ONNX Runtime. Raises EngineError with the command that builds them."""
    found = find_library("ort")
    if found is None:
        raise EngineError("the compiled operators are not there: run 'speechssm ext build host'")
    return found


def library_file(name: Library) -> str:
    """File name of a library on this platform."""
    return f"libspeechssm_{name}.{'dylib' if sys.platform == 'darwin' else 'so'}"


def tensorrt_headers() -> Path | None:
    """Folder of ``NvInferRuntime.h``: in ``$TENSORRT_ROOT``, the system, or from :func:`install_headers`."""
    root = os.environ.get("TENSORRT_ROOT")
    places = [Path(root) / "include"] if root else []
    places += [
        Path(f"/usr/include/{platform.machine()}-linux-gnu"),
        Path("/usr/include"),
        Path("/usr/local/tensorrt/include"),
        _installed_headers() / "kernel_lens" / "include" / "tensorrt",
    ]
    return next((p for p in places if (p / "NvInferRuntime.h").is_file()), None)


def install_headers() -> Path:
    """Fetch TensorRT's headers from the package index, checked against a pinned hash, into the cache."""
    target = _installed_headers()
    _run(_headers_command(sys.executable), "headers")
    found = tensorrt_headers()
    if found is None:
        raise EngineError(
            f"the header package left no NvInferRuntime.h in {target}: set TENSORRT_ROOT instead"
        )
    return found


def status() -> list[Component]:
    """What is found, what is missing, and the command that gets it."""
    cxx = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    headers = tensorrt_headers()
    lines = [
        _tool("C++ compiler", cxx, "apt-get install g++   (macOS: xcode-select --install)"),
        _tool("CMake", shutil.which("cmake"), "pip install cmake"),
        _tool("build tool", shutil.which("ninja") or shutil.which("make"), "pip install ninja"),
        _tool("nvcc (only for CUDA)", shutil.which("nvcc"), "install NVIDIA's CUDA toolkit, 12.4 or newer"),
        Component(
            "TensorRT headers (only for the plugin)",
            headers is not None,
            str(headers) if headers else "not in TENSORRT_ROOT, the system or the cache",
            "" if headers else "speechssm ext headers   (or set TENSORRT_ROOT)",
        ),
    ]
    built: tuple[tuple[Library, str, str], ...] = (
        ("ort", "ONNX Runtime ops", "host"),
        ("cuda", "CUDA kernels", "cuda"),
        ("trt", "TensorRT plugin", "tensorrt"),
    )
    for name, label, preset in built:
        path = find_library(name)
        lines.append(
            Component(
                label,
                path is not None,
                str(path) if path else "not built from the present sources",
                "" if path else f"speechssm ext build {preset}",
            )
        )
    return lines


def _tool(label: str, path: str | None, command: str) -> Component:
    return Component(label, path is not None, path or "not on PATH", "" if path else command)


def _require_tools(preset: Preset) -> None:
    needed = ["C++ compiler", "CMake", "build tool"]
    if preset in ("cuda", "tensorrt"):
        needed.append("nvcc (only for CUDA)")
    if preset in ("harness", "tensorrt"):
        needed.append("TensorRT headers (only for the plugin)")
    missing = [c for c in status() if c.component in needed and not c.found]
    if missing:
        what = "; ".join(f"{c.component} is missing ({c.detail}), get it with: {c.command}" for c in missing)
        raise EngineError(f"cannot build the preset {preset!r}: {what}")


def _configure_command(preset: Preset, tree: Path) -> list[str]:
    command = ["cmake", "-S", str(SOURCES), "-B", str(tree), "--preset", preset]
    command += ["-G", "Ninja" if shutil.which("ninja") else "Unix Makefiles"]
    headers = tensorrt_headers()
    if headers is not None:
        command.append(f"-DSPEECHSSM_TENSORRT_HEADERS={headers}")
        if preset == "sanitize":
            command.append("-DSPEECHSSM_HARNESS=ON")
    return command


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise EngineError(
            f"building {what} failed (exit {done.returncode}) in: {' '.join(command)}\n{tail}\n"
            "`speechssm doctor` lists the tools that were found"
        )
    return done.stdout + done.stderr


def _installed_headers() -> Path:
    return cache_folder() / "trt-headers"


def _headers_command(python: str) -> list[str]:
    options = ["--no-deps", "--require-hashes", "--upgrade", "--quiet", "--target", str(_installed_headers())]
    return [python, "-m", "pip", "install", *options, "-r", str(HEADER_REQUIREMENTS)]


def _intact(folder: Path) -> bool:
    """Whether every file a build recorded is there with the digest it had."""
    try:
        files: dict[str, str] = json.loads((folder / "build.json").read_text())["files"]
        return bool(files) and all(_sha256(folder / name) == seal for name, seal in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version(tool: str) -> str:
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, errors="replace", check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else "unknown")


def main(arguments: list[str] | None = None) -> int:
    """``build.py PRESET | headers | status``."""
    words = sys.argv[1:] if arguments is None else arguments
    word = words[0] if words else "status"
    try:
        if word == "status":
            for line in status():
                mark = "found  " if line.found else "missing"
                print(
                    f"{mark}  {line.component}: {line.detail}"
                    + (f"  -> {line.command}" if line.command else "")
                )
        elif word == "headers":
            print(install_headers())
        else:
            print(build(word))  # type: ignore[arg-type]  # build refuses what is not a preset
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

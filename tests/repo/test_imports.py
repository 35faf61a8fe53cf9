"""Who may import whom (the folders' jobs are in docs/concepts.md)."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.repo.source import REPOSITORY, Import, all_imports, imports_of, modules

LEAVES = (
    "speechssm.axes",
    "speechssm.errors",
    "speechssm.uninterrupted",
    "speechssm.bundle",
    "speechssm.audio",
)
ENGINE_LIBRARIES = ("onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "filelock")

# Prefixes that the modules under each prefix may import at all; the longest matching rule counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "speechssm.axes": (),
    "speechssm.errors": (),
    "speechssm.uninterrupted": (),
    "speechssm.bundle": ("numpy", "pydantic", "speechssm.axes", "speechssm.errors", "speechssm.bundle"),
    "speechssm.audio": (
        "numpy", "soundfile", "soxr", "speechssm.axes", "speechssm.errors", "speechssm.uninterrupted",
        "speechssm.audio",
    ),
    # pydantic checks the table inside a snapshot, as it checks a manifest.
    "speechssm.runtime": ("numpy", "pydantic", *LEAVES, "speechssm.engines.protocol", "speechssm.runtime"),
    "speechssm.engines": (
        "numpy", "pydantic", *ENGINE_LIBRARIES, *LEAVES, "speechssm", "speechssm.__version__", "speechssm.engines",
    ),
    "speechssm.export": (
        "numpy", "pydantic", "torch", "onnx", "ml_dtypes", "tflite", "tqdm", *LEAVES, "speechssm",
        "speechssm.__version__", "speechssm.engines", "speechssm.export",
    ),
    "speechssm.cpp_ext": ("speechssm.errors", "speechssm.cpp_ext"),
    "speechssm": (
        "numpy", "typer", "tqdm", *LEAVES, "speechssm", "speechssm.cli", "speechssm.runtime", "speechssm.engines",
        "speechssm.cpp_ext", "speechssm.export", "speechssm.perf",
    ),
}  # fmt: skip
FREE = ("speechssm.perf", "speechssm.cpp_ext.bench", "speechssm.cpp_ext.gpu")
"""May import anything that is declared."""

# Only inside functions: these libraries are optional, and slow to import.
LATE: dict[str, tuple[str, ...]] = {
    "speechssm.engines": ENGINE_LIBRARIES,
    "speechssm": ("speechssm.export", "speechssm.perf", "speechssm.cpp_ext", "torch", *ENGINE_LIBRARIES),
}
GROUPS = (
    "axes",
    "errors",
    "uninterrupted",
    "bundle",
    "audio",
    "runtime",
    "engines",
    "export",
    "cpp_ext",
    "perf",
)


def below(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether ``name`` is one of ``prefixes`` or inside one; "speechssm" alone means only the front door."""
    return any(name == p or (p != "speechssm" and name.startswith(f"{p}.")) for p in prefixes)


def rule_for(module: str, rules: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    if below(module, FREE):
        return None
    group = ".".join(module.split(".")[:2])
    return rules.get(group if module.split(".")[1:2] and module.split(".")[1] in GROUPS else "speechssm")


def offences(found: list[Import]) -> list[str]:
    bad = []
    for one in found:
        allowed = rule_for(one.module, MAY_IMPORT)
        if allowed is not None and not below(one.target, allowed):
            bad.append(f"{one}: not among {', '.join(allowed) or 'nothing'}")
        late = rule_for(one.module, LATE)
        if late is not None and one.when == "import" and below(one.target, late):
            bad.append(f"{one} at import time: import it where it is used")
    return bad


def test_every_folder_imports_only_what_it_may() -> None:
    found = all_imports()
    seen = {one.module.split(".")[1] for one in found if "." in one.module}
    assert {*GROUPS, "cli"} - seen <= {"axes", "errors", "uninterrupted"}, "the walk missed a folder"
    assert not offences(found)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("speechssm.runtime.x", "import torch"),
        ("speechssm.runtime.x", "def f():\n    import onnxruntime"),
        ("speechssm.runtime.x", "if TYPE_CHECKING:\n    from speechssm.engines.ort import OrtGraph"),
        ("speechssm.runtime.x", "from ..engines import ort"),
        ("speechssm.bundle.x", "from speechssm.runtime.model import Model"),
        ("speechssm.errors", "import numpy"),
        ("speechssm.engines.x", "import onnxruntime as ort"),
        ("speechssm.engines.x", "def f():\n    from speechssm.runtime import model"),
        ("speechssm.export.x", "from speechssm.runtime.model import Model"),
        ("speechssm.cli.x", "from speechssm.export.exporter import export_preset"),
        ("speechssm.cli.x", "import torch"),
        ("speechssm.cpp_ext.x", "import torch"),
    ],
)
def test_a_forbidden_import_is_found(module: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(line)
    assert offences(list(imports_of(module, path)))


def test_every_import_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    base = {_import_name(d) for d in project["dependencies"]}
    declared = base | {_import_name(d) for d in extras}
    for one in all_imports():
        if one.distribution == "speechssm":
            continue
        assert one.distribution in declared, f"{one}, which pyproject.toml does not name"
        if below(one.module, (*LEAVES, "speechssm.runtime", "speechssm.cli")):
            assert one.distribution in base, f"{one}, which the base install lacks"


def _import_name(requirement: str) -> str:
    name = requirement.split(">")[0].split("=")[0].split("[")[0].strip()
    return {"onnxruntime-gpu": "onnxruntime", "cuda-python": "cuda", "py-cpuinfo": "cpuinfo"}.get(
        name, name.replace("-", "_")
    )


def test_the_modules_of_the_links_are_walked() -> None:
    names = {name for name, _ in modules()}
    assert {"speechssm", "speechssm.cli.generate", "speechssm.export.exporter", "speechssm.perf"} <= names


@pytest.mark.parametrize(
    "code",
    [
        "import speechssm",
        "import speechssm.runtime.session, speechssm.runtime.model",
        "import sys; sys.argv = ['speechssm', 'generate', '--help']; from speechssm.cli import main\n"
        "try: main()\nexcept SystemExit: pass",
    ],
    ids=["import", "runtime", "generate --help"],
)
def test_running_needs_neither_torch_nor_onnx(code: str) -> None:
    """Fresh interpreter: none of the heavy libraries is imported, not even indirectly."""
    check = (
        "import sys; print(sorted(set(sys.modules) & {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'typer'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.strip().splitlines()[-1]
    assert loaded == ("['typer']" if "help" in code else "[]"), loaded


def test_generating_never_imports_torch_or_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """The whole main job: a prompt in, speech out."""
    code = (
        "import sys, numpy as np, speechssm\n"
        f"model = speechssm.load({str(tiny_bundle)!r}, threads=1)\n"
        "noise = np.random.default_rng().standard_normal(16000).astype('float32') / 10\n"
        "speech = model.generate(noise, rate_hz=16000, seconds=0.5)\n"
        "assert len(speech.audio) == 8000\n"
        "print(sorted(set(sys.modules) & {'torch', 'onnx'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"

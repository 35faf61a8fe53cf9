"""What an installed speechssm holds: the wheel, the source archive, and what becomes importable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.repo.source import REPOSITORY, modules

FOLDERS = ("export", "runtime", "engines", "cpp_ext", "perf")
INPUTS = ("pyproject.toml", "README.md", "LICENSE", "src", *FOLDERS)
SOURCE_SUFFIXES = {".cpp", ".hpp", ".h", ".cu", ".cuh", ".cmake"}


def build(kind: str, tree: Path, target: Path) -> Path:
    """Run the build backend as a front end would, without the network."""
    code = f"from setuptools import build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", str(target)],
        cwd=tree, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads: building in place leaves folders that the next build would pick up."""
    copy = tmp_path_factory.mktemp("tree") / "speechssm"
    ignored = shutil.ignore_patterns("*.egg-info", "build")
    for name in INPUTS:
        source, target = REPOSITORY / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            # Caches are copied too: the wheel must leave them out by itself.
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    (copy / "export" / "__pycache__").mkdir(exist_ok=True)
    (copy / "export" / "__pycache__" / "planted.pyc").write_bytes(b"")
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_and_nothing_of_the_checkout(wheel: Path) -> None:
    listed = names(wheel)
    packages = {name.split("/")[0] for name in listed}
    assert len(packages) == 2
    assert "speechssm" in packages, "only the package and its dist-info"
    expected = {_wheel_name(module, path) for module, path in modules()}
    assert {n for n in listed if n.endswith(".py")} == expected
    assert {"speechssm/py.typed", "speechssm/export/exporter.py", "speechssm/perf/__init__.py"} <= listed
    assert not [n for n in listed if "__pycache__" in n or n.endswith((".pyc", ".so", ".o"))]


def _wheel_name(module: str, path: Path) -> str:
    name = module.replace(".", "/")
    return f"{name}/__init__.py" if path.name == "__init__.py" else f"{name}.py"


def test_the_wheel_holds_the_native_sources(wheel: Path) -> None:
    folder = REPOSITORY / "cpp_ext"
    sources = {
        f"speechssm/cpp_ext/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.suffix in SOURCE_SUFFIXES or path.name in ("CMakeLists.txt", "CMakePresets.json")
    }
    assert len(sources) > 10
    assert sources <= names(wheel)


def test_the_source_archive_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    """The links of src/speechssm become folders in the archive, so it also unpacks where links do not work."""
    archive = build("sdist", tree, tmp_path)
    with tarfile.open(archive) as tar:
        assert not [m.name for m in tar.getmembers() if m.issym() or m.islnk()]
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names(build("wheel", unpacked, tmp_path)) == names(wheel)


def test_an_installed_wheel_imports_by_one_name_only(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import importlib.util as u, speechssm, speechssm.runtime.session, speechssm.engines.ort, speechssm.perf\n"
        f"print(speechssm.__file__, [n for n in {(*FOLDERS, 'recipes', 'tests')!r} if u.find_spec(n)])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{site / 'speechssm' / '__init__.py'} []"


def test_the_metadata_names_licence_pythons_and_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
        licence = archive.read(name.replace("METADATA", "licenses/LICENSE")).decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "Version 2.0" in licence
    assert metadata["Requires-Python"] == ">=3.11"
    assert "make demo" in metadata.get_payload(), "the README is the long description"
    required = metadata.get_all("Requires-Dist")
    base = [r for r in required if "extra ==" not in r]
    heavy = ("torch", "onnx", "tensorrt", "cuda", "pycuda")
    assert not [r for r in base if r.startswith(heavy)]


def test_the_extras_exclude_what_they_must() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("cpu", "export", "dev"):
        assert not [
            r for r in extras[extra] if r.startswith(("tensorrt", "pycuda", "cuda", "onnxruntime-gpu"))
        ]
    assert not [r for r in extras["gpu"] if r.startswith("onnxruntime>")]

"""Building and finding the libraries: cache keys, interruption, races, missing tools. A tiny project stands in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from speechssm.cpp_ext import build as ext
from speechssm.errors import EngineError

CMAKE = """cmake_minimum_required(VERSION 3.21)
project(tiny LANGUAGES CXX)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
add_library(speechssm_ort SHARED ort.cpp)
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A project of one function in place of the sources, and an empty cache."""
    if not (shutil.which("c++") and shutil.which("cmake")):
        pytest.skip("needs a C++ compiler and CMake (apt-get install g++ cmake)")
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "CMakeLists.txt").write_text(CMAKE)
    presets = [{"name": "host", "binaryDir": "${sourceDir}/build"}]
    (sources / "CMakePresets.json").write_text(json.dumps({"version": 3, "configurePresets": presets}))
    (sources / "ort.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(ext, "SOURCES", sources)
    monkeypatch.setenv(ext.CACHE_VARIABLE, str(tmp_path / "cache"))
    return sources


def cached(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir())


def test_find_never_builds_and_finds_what_build_made(tiny, tmp_path):
    assert ext.find_library() is None
    assert not (tmp_path / "cache").exists()
    folder = ext.build("host")
    assert ext.find_library() == folder / ext.library_file("ort")
    assert ext.find_library("trt") is None
    assert "ort.cpp" in (folder / "build.log").read_text()


def test_a_second_build_takes_the_cache(tiny, monkeypatch):
    folder = ext.build("host")
    monkeypatch.setattr(ext, "_run", lambda *_: pytest.fail("it compiled again"))
    assert ext.build("host") == folder


def test_a_changed_source_is_another_build(tiny):
    before = ext.build("host")
    (tiny / "ort.cpp").write_text('extern "C" int answer() { return 43; }\n')
    assert ext.find_library() is None
    assert ext.build("host") != before
    (tiny / "README.md").write_text("not compiled\n")
    assert ext.find_library() is not None


def test_an_altered_library_is_not_used_and_is_built_again(tiny):
    library = ext.build("host") / ext.library_file("ort")
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    assert ext.find_library() is None
    ext.build("host")
    assert ext.find_library() == library


def test_a_failed_build_says_why_and_leaves_nothing(tiny, tmp_path):
    (tiny / "ort.cpp").write_text("int answer( { }\n")
    with pytest.raises(EngineError, match=r"(?s)building host failed.*ort\.cpp.*error.*doctor"):
        ext.build("host")
    assert cached(tmp_path) == []


def test_an_interrupted_build_leaves_nothing(tiny, tmp_path, monkeypatch):
    def interrupted(command: list[str], what: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(ext, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ext.build("host")
    assert cached(tmp_path) == []


def test_two_builders_give_one_result(tiny, tmp_path, monkeypatch):
    run, both = ext._run, threading.Barrier(2)

    def together(command: list[str], what: str) -> str:
        if "--build" in command:
            both.wait(60)  # neither finishes before the other has started
        return run(command, what)

    monkeypatch.setattr(ext, "_run", together)
    folders: list[Path] = []
    builders = [threading.Thread(target=lambda: folders.append(ext.build("host"))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert cached(tmp_path) == [folders[0].name]
    assert ext.find_library() is not None


def test_missing_tools_are_named_with_the_command(tiny, monkeypatch):
    monkeypatch.setattr(ext.shutil, "which", lambda _: None)
    with pytest.raises(
        EngineError, match=r"C\+\+ compiler is missing.*apt-get install g\+\+.*pip install cmake"
    ):
        ext.build("host")
    with pytest.raises(EngineError, match="nvcc"):
        ext.build("cuda")
    lines = ext.status()
    assert all(line.command for line in lines if not line.found)
    assert not any(line.command for line in lines if line.found)


def test_missing_headers_are_named_with_the_command(tiny, monkeypatch):
    monkeypatch.setattr(ext, "tensorrt_headers", lambda: None)
    with pytest.raises(EngineError, match=r"TensorRT headers.*speechssm ext headers"):
        ext.build("harness")


def test_headers_come_from_tensorrt_root_first(tiny, tmp_path, monkeypatch):
    include = tmp_path / "trt" / "include"
    include.mkdir(parents=True)
    (include / "NvInferRuntime.h").touch()
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "trt"))
    assert ext.tensorrt_headers() == include


def test_unknown_presets_and_unwritable_caches_are_refused(tiny, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match=r"no preset 'fast'.*host"):
        ext.build("fast")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    monkeypatch.setenv(ext.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(EngineError, match=r"cannot build in.*SPEECHSSM_CPP_EXT"):
        ext.build("host")


def test_command_line(tiny, capsys):
    assert ext.main(["host"]) == 0
    assert Path(capsys.readouterr().out.strip()) == ext.build("host")
    assert ext.main(["status"]) == 0
    assert "ONNX Runtime ops" in capsys.readouterr().out
    assert ext.main(["nonsense"]) == 1
    assert "choose one of" in capsys.readouterr().err


def test_finding_needs_no_heavy_import():
    """The runtime may ask for the library at start-up: nothing but the standard library and our errors is loaded."""
    script = (
        "import sys, speechssm.cpp_ext.build as b; b.find_library();"
        "print([m for m in ('numpy', 'torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"

"""Building through a double of the vendor: a real worker process, a real cache, and everything that can go wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from speechssm.bundle import Bundle, open_bundle
from speechssm.cli import app
from speechssm.engines import builder
from speechssm.engines.builder import Environment, build_engines, engine_key, find_engine, find_environment
from speechssm.engines.explain import explain
from speechssm.engines.index import INDEX, BuildSettings, command, read_index
from speechssm.engines.key import REASONS, AxisRange
from speechssm.engines.profiles import Profiles
from speechssm.engines.vendor import Built, find_vendor, run_build
from speechssm.errors import BundleError, EngineError
from tests.engines.vendor_double import use_double

RTX = BuildSettings(engine="tensorrt-rtx")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.so"
    path.write_bytes(b"a library")
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> Environment:
    use_double(monkeypatch)
    return find_environment("tensorrt-rtx", plugin)


def test_every_graph_is_built_once_and_found_again(bundle: Bundle, here: Environment, tmp_path: Path) -> None:
    out, heard = tmp_path / "engines", []
    listen = lambda graph: lambda *event: heard.append((graph, *event))  # noqa: E731
    first = list(build_engines(bundle, RTX, out, here, progress=listen))
    assert [b.graph for b in first] == list(bundle.manifest.graphs)
    assert all(b.seconds > 0 for b in first)
    assert {graph for graph, *_ in heard} == set(bundle.manifest.graphs)
    assert any(phase == "Building" for _, phase, *_ in heard)
    layers = {b.graph: b.layers.get("PLUGIN_V3", 0) for b in first}
    assert layers["lm_step"] == layers["lm_chunk"] == 4
    assert sum(layers.values()) == 8
    again = list(build_engines(bundle, RTX, out, here))
    assert [b.engine for b in again] == [b.engine for b in first]
    assert all(b.seconds == 0 for b in again)
    index = read_index(out)
    for graph in bundle.manifest.graphs:
        assert find_engine(bundle, graph, index, out, here).engine is not None
    lines = list(explain(out, bundle, lambda _: here))
    assert [line for line in lines if "not reused" in line] == []
    leftovers = {p.name for p in out.iterdir() if not p.is_dir()} - {
        INDEX,
        ".timing-tensorrt-rtx-1.7.1.116.cache",
    }
    assert all(name.endswith(".lock") for name in leftovers)


def test_one_graph_at_a_time_fills_the_index(bundle: Bundle, here: Environment, tmp_path: Path) -> None:
    for graph in ("lm_step", "codec_decode"):
        list(build_engines(bundle, RTX, tmp_path, here, graphs=[graph]))
    assert set(read_index(tmp_path).graphs) == {"lm_step", "codec_decode"}
    other = RTX.model_copy(update={"precision": "float16"})
    list(build_engines(bundle, other, tmp_path, here, graphs=["lm_step"]))
    assert set(read_index(tmp_path).graphs) == {"lm_step"}, "engines of other settings are not mixed in"


def test_the_timing_cache_is_handed_on(bundle: Bundle, here: Environment, tmp_path: Path) -> None:
    list(build_engines(bundle, RTX, tmp_path, here, graphs=["codec_decode", "codec_encode"]))
    assert (tmp_path / ".timing-tensorrt-rtx-1.7.1.116.cache").read_bytes() == b"++"


CHANGES = {
    "flavour_version": lambda s, h: (s, Environment("1.8.0", h.plugin, None)),
    "precision": lambda s, h: (s.model_copy(update={"precision": "bfloat16"}), h),
    "architecture": lambda s, h: (s.model_copy(update={"architectures": ("sm_89",)}), h),
    "profiles": lambda s, h: (
        s.model_copy(update={"profiles": Profiles(rows=AxisRange(low=1, likely=4, high=4))}), h
    ),
    "options": lambda s, h: (s.model_copy(update={"tf32": True}), h),
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_what_changes_here_is_a_miss_with_its_reason(
    field: str, bundle: Bundle, here: Environment, tmp_path: Path
) -> None:
    list(build_engines(bundle, RTX, tmp_path, here, graphs=["lm_step"]))
    settings, now = CHANGES[field](RTX, here)
    assert getattr(engine_key(bundle, "lm_step", settings, now), field) != getattr(
        engine_key(bundle, "lm_step", RTX, here), field
    )
    index = read_index(tmp_path).model_copy(update={"settings": settings})
    verdict = find_engine(bundle, "lm_step", index, tmp_path, now)
    assert verdict.engine is None
    assert REASONS[field].split("{")[0] in str(verdict)


def test_another_plugin_or_bundle_is_a_miss_with_its_reason(
    bundle: Bundle, here: Environment, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(build_engines(bundle, RTX, tmp_path, here, graphs=["lm_step"]))
    plugin.write_bytes(b"another library")
    lines = list(explain(tmp_path, bundle, lambda flavour: find_environment(flavour, plugin)))
    assert any("lm_step: not reused" in line and "the plugin library changed" in line for line in lines)
    assert (
        lines[-1] == f"to put it right: speechssm build {bundle.folder} --engine tensorrt-rtx -o {tmp_path}"
    )
    files = dict(bundle.manifest.files)
    entry = bundle.manifest.graphs["lm_step"]
    files[entry.weights[0]] = files[entry.weights[0]].model_copy(update={"sha256": "0" * 64})
    other = Bundle(bundle.folder, bundle.manifest.model_copy(update={"files": files}), bundle.digest)
    assert any("the weights changed" in line for line in explain(tmp_path, other, lambda _: here))


def test_a_gpu_the_engine_was_not_built_for(bundle: Bundle, here: Environment, tmp_path: Path) -> None:
    settings = RTX.model_copy(update={"architectures": ("sm_80", "sm_89")})
    list(build_engines(bundle, settings, tmp_path, here, graphs=["lm_step"]))
    index = read_index(tmp_path)
    for architecture, fits in ((None, True), ("sm_89", True), ("sm_90", False), ("sm_75", False)):
        now = Environment(here.version, here.plugin, architecture)
        verdict = find_engine(bundle, "lm_step", index, tmp_path, now)
        assert (verdict.engine is not None) == fits
    assert "built for sm_80+sm_89, and this GPU is sm_75" in str(verdict)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "crash",
            r"ended while building graph lm_step \(signal SIGSEGV\): about to fall; nothing was written",
        ),
        ("exit", r"ended while building graph lm_step \(exit 134\): terminate called"),
        ("refuse", r"refused to build graph lm_step: Could not find any implementation for node L00/MatMul"),
        ("no-plugins", r"plugin.so brings no plugin.*speechssm ext build tensorrt.*--no-plugin"),
    ],
)
def test_a_failing_vendor_is_a_sentence_and_leaves_nothing(
    fault: str,
    message: str,
    bundle: Bundle,
    here: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_double(monkeypatch, fault)
    out = tmp_path / "engines"
    with pytest.raises(EngineError, match=message):
        list(build_engines(bundle, RTX, out, here))
    assert [p for p in out.iterdir() if p.is_dir()] == []
    assert not (out / INDEX).exists()


def test_what_the_vendor_prints_is_not_read_as_ours(
    bundle: Bundle, here: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_double(monkeypatch, "noise")
    (built,) = build_engines(bundle, RTX, tmp_path, here, graphs=["codec_decode"])
    assert built.seconds > 0


def test_a_plugin_of_another_version_is_said(bundle: Bundle, here: Environment, tmp_path: Path) -> None:
    """The node's operator is not among the library's: the parser's own words, and what to run."""
    from speechssm.engines.prepare import prepare

    made = prepare(bundle, "lm_step", tmp_path / "p")
    job = {"module": "tensorrt_rtx", "model": str(made.path), "plugin": "", "output": str(tmp_path / "e")}
    with pytest.raises(EngineError, match=r"Plugin not found.*speechssm ext build tensorrt"):
        run_build(here.vendor, job, "graph lm_step")


def test_a_node_that_the_plugin_did_not_take_is_said(
    bundle: Bundle, here: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "run_build", lambda *_: Built({"PLUGIN_V3": 3, "MATMUL": 9}, 0.1, False))
    with pytest.raises(EngineError, match=r"took 3 of 4 nodes of graph lm_step for the plugin's.*MATMUL"):
        list(build_engines(bundle, RTX, tmp_path, here, graphs=["lm_step"]))
    assert not (tmp_path / "engines.json").exists()


def test_a_bad_profile_is_said(bundle: Bundle, here: Environment, tmp_path: Path) -> None:
    from speechssm.engines.prepare import prepare

    made = prepare(bundle, "codec_decode", tmp_path / "p")
    job = {"module": "tensorrt_rtx", "model": str(made.path), "plugin": "", "output": str(tmp_path / "e")}
    job |= {
        "tf32": False,
        "aliased": False,
        "capabilities": [],
        "shapes": {},
        "values": {},
        "timing_cache": None,
    }
    with pytest.raises(
        EngineError, match=r"missing values for .*. Check --rows, --batch, --tokens and --frames"
    ):
        run_build(here.vendor, job, "graph codec_decode")


@pytest.mark.parametrize(
    ("settings", "changed", "message"),
    [
        ({"engine": "tensorrt"}, {}, "builds for the GPU at hand, and there is none"),
        ({"architectures": ("sm_90",)}, {}, "does not compile for sm_90: choose among sm_80"),
        ({"engine": "onnxruntime-cuda", "architectures": ("sm_80",)}, {}, "--arch belongs to"),
        ({}, {"plugin": None}, "needs the TensorRT plugin, which is not built.*speechssm ext build tensorrt"),
        ({}, {"plugin": Path("/nowhere/x.so")}, "there is no plugin library at /nowhere/x.so"),
        ({"plugin": False, "aliased": True}, {}, "state in place needs the TensorRT plugin"),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(
    settings: dict, changed: dict, message: str, bundle: Bundle, here: Environment, tmp_path: Path
) -> None:
    asked = BuildSettings(**({"engine": "tensorrt-rtx"} | settings))
    now = Environment(here.version, changed.get("plugin", here.plugin), None, here.vendor)
    with pytest.raises(EngineError, match=message):
        list(build_engines(bundle, asked, tmp_path / "out", now))
    assert not (tmp_path / "out").exists()


def test_an_unknown_graph_is_refused_before_anything_is_built(
    bundle: Bundle, here: Environment, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="has no vocoder graph"):
        list(build_engines(bundle, RTX, tmp_path / "out", here, graphs=["codec_decode", "vocoder"]))
    assert not (tmp_path / "out").exists()


def test_a_missing_vendor_names_the_extra_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHSSM_TENSORRT_PYTHON", sys.executable)
    with pytest.raises(EngineError, match=r"No module named.*speechssm\[trt\].*SPEECHSSM_TENSORRT_PYTHON"):
        find_vendor("tensorrt")
    monkeypatch.setenv("SPEECHSSM_TENSORRT_PYTHON", "/nowhere/python")
    with pytest.raises(EngineError, match="names /nowhere/python, which cannot be run"):
        find_vendor("tensorrt-rtx")


def test_onnxruntime_needs_no_vendor(bundle: Bundle, tmp_path: Path) -> None:
    settings = BuildSettings(engine="onnxruntime-cuda", precision="float16")
    here = find_environment("onnxruntime-cuda", None)
    built = list(build_engines(bundle, settings, tmp_path, here))
    assert {b.engine.name for b in built} == {"model.onnx"}
    assert sorted(p.name for p in built[0].engine.parent.iterdir()) == [
        "model.onnx",
        "record.json",
        "weights.bin",
    ]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / INDEX).unlink(), "there are no engines in"),
        (lambda f: (f / INDEX).write_text("{"), "is damaged"),
        (lambda f: (f / INDEX).write_bytes(b" " * (2 << 20)), "larger than an index"),
        (
            lambda f: (f / INDEX).write_text(json.dumps(json.loads((f / INDEX).read_text()) | {"more": 1})),
            "more: Extra inputs",
        ),
    ],
)
def test_a_harmed_index_is_refused(
    harm, message: str, bundle: Bundle, here: Environment, tmp_path: Path
) -> None:
    list(build_engines(bundle, RTX, tmp_path, here, graphs=["codec_decode"]))
    harm(tmp_path)
    with pytest.raises(EngineError, match=message):
        list(explain(tmp_path, bundle, lambda _: here))


def test_an_engine_put_there_by_somebody_else_is_not_loaded(
    bundle: Bundle, here: Environment, tmp_path: Path
) -> None:
    """An engine is code: a record rewritten to fit another engine is not the record the index names."""
    import hashlib

    list(build_engines(bundle, RTX, tmp_path, here, graphs=["codec_decode"]))
    index = read_index(tmp_path)
    folder = tmp_path / index.graphs["codec_decode"].folder
    (folder / "engine.bin").write_bytes(b"other code")
    record = json.loads((folder / "record.json").read_text())
    record["files"]["engine.bin"] = {
        "sha256": hashlib.sha256(b"other code").hexdigest(), "size_bytes": 10
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    verdict = find_engine(bundle, "codec_decode", index, tmp_path, here)
    assert verdict.engine is None
    assert "is not the one that engines.json names" in str(verdict)


def test_the_command_builds_the_same_again() -> None:
    """What explain prints is what build takes."""
    settings = BuildSettings(
        engine="tensorrt-rtx", precision="float16", architectures=("sm_80", "sm_89"), aliased=True, tf32=True,
        profiles=Profiles(batch=AxisRange(low=1, likely=2, high=3)),
    )  # fmt: skip
    words = command(settings, "voice", Path("engines")).split()
    assert words[:3] == ["speechssm", "build", "voice"]
    import typer.main

    known = {o for p in typer.main.get_command(app).commands["build"].params for o in p.opts}  # type: ignore[attr-defined]
    assert {w for w in words if w.startswith("-")} <= known
    assert "--batch 1,2,3" in " ".join(words)
    assert "--rows" not in words
    assert "--no-plugin" in command(settings.model_copy(update={"plugin": False}), "v", Path("e"))


def test_an_interrupted_build_ends_its_child(
    bundle: Bundle, here: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def interrupt(phase: str, step: int, steps: int) -> None:
        raise KeyboardInterrupt

    from speechssm.engines import vendor

    real = vendor.subprocess.Popen

    def remember(*args, **kwargs):
        child = real(*args, **kwargs)
        pids.append(child.pid)
        return child

    monkeypatch.setattr(vendor.subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        list(build_engines(bundle, RTX, tmp_path / "out", here, progress=lambda _: interrupt))
    (pid,) = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [p for p in (tmp_path / "out").iterdir() if p.is_dir()] == []

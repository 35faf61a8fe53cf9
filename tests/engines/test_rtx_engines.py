"""TensorRT-RTX really builds the engines of whole bundles, on a machine without a GPU.

It is found as users' is: ``SPEECHSSM_TENSORRT_PYTHON``, or the environment of tests/cpp_ext/test_rtx_build.py.
``pytest -m rtx -s`` prints size, time and layers of each engine.
Building is all that can be shown here; running an engine needs a device.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from speechssm.bundle import Bundle, open_bundle
from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.bundle.shipped import VOICE
from speechssm.cpp_ext.build import library_file
from speechssm.engines.builder import BuiltGraph, Environment, build_engines, find_environment
from speechssm.engines.explain import explain
from speechssm.engines.index import BuildSettings
from speechssm.engines.key import AxisRange
from speechssm.engines.profiles import input_shapes
from speechssm.engines.vendor import PYTHON_VARIABLE, run_build
from speechssm.errors import EngineError
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.exporter import export_models, export_preset
from speechssm.export.storage import Storage
from tests.cpp_ext.conftest import built
from tests.doubles.lm import TINY

pytestmark = pytest.mark.rtx

PYTHON = Path(os.environ.get("SPEECHSSM_RTX_PYTHON", Path.home() / ".cache/speechssm/venv-rtx/bin/python"))
RTX = BuildSettings(engine="tensorrt-rtx")


@pytest.fixture(scope="module")
def here() -> Environment:
    """TensorRT-RTX, with the plugin on host launchers: for building, what it launches does not matter."""
    if not PYTHON.is_file():
        pytest.skip("needs TensorRT-RTX in an environment of its own: see tests/cpp_ext/test_rtx_build.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PYTHON_VARIABLE, str(PYTHON))
        return find_environment("tensorrt-rtx", built("harness") / library_file("trt_host"))


def build(
    bundle: Bundle, out: Path, here: Environment, *graphs: str, **changed: object
) -> dict[str, BuiltGraph]:
    made = list(build_engines(bundle, RTX.model_copy(update=changed), out, here, graphs=graphs))
    for b in made:
        layers = f"{sum(b.layers.values())} layers, {b.layers.get('PLUGIN_V3', 0)} of the plugin"
        print(f"{bundle.manifest.name} {b.graph}: {b.size_bytes / 1e6:.1f} MB in {b.seconds:.1f} s, {layers}")
    return {b.graph: b for b in made}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_engine_of_tiny(precision: str, tiny_bundle: Path, here: Environment, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    made = build(bundle, tmp_path, here, precision=precision)
    assert set(made) == set(bundle.manifest.graphs)
    assert {g: b.layers.get("PLUGIN_V3", 0) for g, b in made.items() if b.layers.get("PLUGIN_V3")} == {
        "lm_step": 4, "lm_chunk": 4
    }  # fmt: skip
    assert all(b.size_bytes > 100_000 for b in made.values())
    # The chunk's attention is a loop; its recurrence is not one any more.
    assert made["lm_chunk"].layers["TRIP_LIMIT"] == 1
    lines = list(explain(tmp_path, bundle, lambda _: here))
    assert [line for line in lines if line.endswith(": reused")] == [f"{g}: reused" for g in made]


@pytest.mark.slow
def test_every_engine_of_the_demo_voices_shape(here: Environment, tmp_path: Path) -> None:
    """Seeded weights in the shapes of the ``demo`` preset."""
    export_preset("demo", tmp_path / "demo", seed=0, rollout=8)
    made = build(open_bundle(tmp_path / "demo"), tmp_path / "engines", here)
    assert made["lm_step"].layers["PLUGIN_V3"] == made["lm_chunk"].layers["PLUGIN_V3"] == 6
    assert {"acoustic", "codec_encode", "codec_decode", "tokenizer"} <= set(made)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_engine_of_the_shipped_voice(precision: str, here: Environment, tmp_path: Path) -> None:
    """What ships has float16 weights, widened in the graph; in float16 engines they are used as they are."""
    bundle = open_bundle(VOICE)
    made = build(bundle, tmp_path, here, precision=precision)
    assert set(made) == set(bundle.manifest.graphs)
    layers = bundle.manifest.lm.shape.blocks.count("recurrent")
    assert {g: b.layers.get("PLUGIN_V3", 0) for g, b in made.items() if b.layers.get("PLUGIN_V3")} == {
        "lm_step": layers, "lm_chunk": layers
    }  # fmt: skip
    assert all(b.size_bytes > 5_000_000 for b in made.values())


def test_the_command_names_the_plugins_layers(here: Environment, tmp_path: Path) -> None:
    """What a user sees of the shipped voice's step: its size, its time, and that the plugin is in it."""
    done = subprocess.run(
        [sys.executable, "-m", "speechssm", "build", str(VOICE), "--engine", "tensorrt-rtx",
         "--graph", "lm_step", "--plugin", str(here.plugin), "-o", str(tmp_path)],
        capture_output=True, text=True, check=False, env=os.environ | {PYTHON_VARIABLE: str(PYTHON)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"lm_step: [\d.]+ MB, built in [\d.]+ s; \d+ layers, 4 of the plugin \(", done.stdout), (
        done.stdout
    )


@pytest.mark.parametrize("ring", ["float32", "int8"])
@pytest.mark.parametrize("storage", ["qdq_int8", "qdq_fp8"])
def test_explicitly_quantized_engines(storage: Storage, ring: str, here: Environment, tmp_path: Path) -> None:
    """8-bit products beside the plugin, with a ring of either width; both graphs of the language model."""
    shape = TINY.model_copy(update={"ring": ring, "tied_head": False})
    export_models(
        f"{storage}-{ring}", {"lm": shape}, {"lm": seeded_griffin(shape, 1)}, tmp_path / "b", about="",
        storage=storage, rollout=8, threads=1,
    )  # fmt: skip
    made = build(open_bundle(tmp_path / "b"), tmp_path / "e", here)
    products = (
        3 * 4 + 4 + 3 * 5
    )  # of recurrent blocks, of the attention, of the MLPs; a step also has the head
    for graph, count in (("lm_step", products + 1), ("lm_chunk", products)):
        layers = made[graph].layers
        assert layers["PLUGIN_V3"] == 4
        # A product reads a weight and an activation; activations that several products read are quantized once.
        assert count < layers["DEQUANTIZE"] <= 2 * count
        assert layers["DEQUANTIZE"] == count + layers["QUANTIZE"]


@pytest.mark.parametrize("ring", ["float32", "float16", "int8"])
def test_attention_exported_as_an_operator(ring: str, here: Environment, tmp_path: Path) -> None:
    shape = TINY.model_copy(update={"ring": ring})
    export_models(
        f"ring-op-{ring}", {"lm": shape}, {"lm": seeded_griffin(shape, 1)}, tmp_path / "b", about="", rollout=8,
        threads=1, ring_op=True,
    )  # fmt: skip
    bundle = open_bundle(tmp_path / "b")
    made = build(bundle, tmp_path / "e", here, "lm_step", "lm_chunk", precision="bfloat16")
    assert [b.layers["PLUGIN_V3"] for b in made.values()] == [5, 5]  # four of recurrence, one of attention
    assert "TRIP_LIMIT" not in made["lm_chunk"].layers  # no loop is left
    (aliased,) = build(bundle, tmp_path / "e", here, "lm_step", aliased=True).values()
    assert aliased.layers["PLUGIN_V3"] == 5
    written = build(bundle, tmp_path / "e", here, "lm_step", "lm_chunk", plugin=False, precision="bfloat16")
    assert not any("PLUGIN_V3" in b.layers for b in written.values())


@pytest.mark.slow
def test_a_step_engine_of_300_mb(here: Environment, tmp_path: Path) -> None:
    shape = LMShape(
        vocab=4096, width=1024, lru_width=1024, heads=8, kv_heads=1, head_dim=128, window=512, mlp_width=3072,
        blocks=griffin_blocks(11), rope="none",
    )  # fmt: skip
    export_models(
        "large", {"lm": shape}, {"lm": seeded_griffin(shape, 0)}, tmp_path / "large", about="for one test",
        seeded=True, storage="bfloat16", rollout=2,
    )  # fmt: skip
    (made,) = build(
        open_bundle(tmp_path / "large"), tmp_path / "engines", here, "lm_step", precision="bfloat16"
    ).values()
    assert made.size_bytes > 290e6
    assert made.layers["PLUGIN_V3"] == 8


def test_state_in_place_and_compute_capabilities(
    tiny_bundle: Path, here: Environment, tmp_path: Path
) -> None:
    bundle = open_bundle(tiny_bundle)
    (aliased,) = build(bundle, tmp_path, here, "lm_step", aliased=True).values()
    assert aliased.layers["PLUGIN_V3"] == 4
    (codec,) = build(bundle, tmp_path, here, "codec_decode", architectures=("sm_80", "sm_89")).values()
    assert codec.size_bytes > 100_000


def test_without_the_plugin_the_functions_are_built(
    tiny_bundle: Path, here: Environment, tmp_path: Path
) -> None:
    (step,) = build(open_bundle(tiny_bundle), tmp_path, here, "lm_step", plugin=False).values()
    assert "PLUGIN_V3" not in step.layers
    assert step.layers["ELEMENTWISE"] > 299


def job_for(bundle: Bundle, folder: Path, here: Environment, graph: str, **changed: object) -> dict:
    from speechssm.engines.prepare import prepare

    made = prepare(bundle, graph, folder)
    one = AxisRange(low=1, likely=1, high=2)
    job = {
        "module": "tensorrt_rtx", "model": str(made.path), "plugin": str(here.plugin), "tf32": False,
        "aliased": False, "capabilities": [], "values": {}, "timing_cache": None, "output": str(folder / "engine.bin"),
        "shapes": input_shapes(bundle.manifest.graphs[graph], {"b": one, "t": one, "f": one, "n": one}),
    }  # fmt: skip
    return job | changed


def test_what_the_real_vendor_refuses_is_a_sentence(
    tiny_bundle: Path, here: Environment, tmp_path: Path
) -> None:
    """A plugin of another version, a library that is missing or brings nothing, a profile that does not fit."""
    bundle = open_bundle(tiny_bundle)
    assert here.vendor
    step = job_for(bundle, tmp_path / "step", here, "lm_step")
    model = onnx.load(step["model"], load_external_data=False)
    for node in model.graph.node:
        if node.domain == "speechssm":
            node.attribute.append(onnx.helper.make_attribute("plugin_version", "2"))
    Path(step["model"]).write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"Plugin not found.*speechssm ext build tensorrt.*--no-plugin"):
        run_build(here.vendor, step, "graph lm_step")
    with pytest.raises(EngineError, match="speechssm ext build tensorrt"):
        run_build(here.vendor, step | {"plugin": str(tmp_path / "missing.so")}, "graph lm_step")
    empty = built("host") / library_file("host")
    with pytest.raises(EngineError, match="speechssm ext build tensorrt"):
        run_build(here.vendor, step | {"plugin": str(empty)}, "graph lm_step")
    codec = job_for(bundle, tmp_path / "codec", here, "codec_decode", plugin="")
    with pytest.raises(EngineError, match=r"(?i)profile.*Check --rows, --batch, --tokens and --frames"):
        run_build(here.vendor, codec | {"shapes": {}}, "graph codec_decode")
    for token, words in (
        (((3,), (2,), (1,)), "MIN<=OPT<=MAX"),  # not in order
        (((3,), (3,), (3,)), "contradictory"),  # other rows than the state has
        (((1, 1), (1, 1), (1, 1)), "1 dimensions but profile 0 has 2"),
    ):
        step = job_for(bundle, tmp_path / "step", here, "lm_step")
        step["shapes"]["token"] = token
        with pytest.raises(EngineError, match=f"(?s){words}.*Check --rows, --batch, --tokens and --frames"):
            run_build(here.vendor, step, "graph lm_step")
        assert not Path(step["output"]).exists()
    assert not Path(codec["output"]).exists()
    with pytest.raises(EngineError, match="needs the TensorRT plugin, which is not built"):
        build(bundle, tmp_path / "e", Environment(here.version, None, None, here.vendor))
    assert not (tmp_path / "e").exists()

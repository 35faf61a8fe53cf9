"""TensorRT-RTX on a machine without a GPU: it must parse our node, take the plugin, and build an engine.

TensorRT-RTX is proprietary and lives in a virtual environment of its own, never in the project's:

    python -m venv ~/.cache/speechssm/venv-rtx
    ~/.cache/speechssm/venv-rtx/bin/pip install tensorrt-rtx==1.7.1.116

Building is all that can be shown here: running an engine needs a device.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from speechssm.cpp_ext.build import library_file
from speechssm.export.graphs.builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from speechssm.export.graphs.rglru_function import DOMAIN, SCAN, STEP
from tests.cpp_ext.conftest import built
from tests.cpp_ext.ring_graphs import node_model, shape_of

pytestmark = pytest.mark.rtx

WORKER = Path(__file__).with_name("rtx_worker.py")
PYTHON = Path(os.environ.get("SPEECHSSM_RTX_PYTHON", Path.home() / ".cache/speechssm/venv-rtx/bin/python"))


@pytest.fixture(scope="module")
def links(tmp_path_factory) -> Path:
    """A folder with the unversioned name the parser opens at the first plugin node; the wheel lacks it."""
    if not PYTHON.is_file():
        pytest.skip("needs TensorRT-RTX in an environment of its own: see the top of this file")
    where = [str(PYTHON), "-c", "import tensorrt_rtx_libs; print(tensorrt_rtx_libs.__path__[0])"]
    libs = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    folder = tmp_path_factory.mktemp("rtx")
    (folder / "libtensorrt_rtx.so").symlink_to(libs / "libtensorrt_rtx.so.1")
    return folder


@pytest.fixture(scope="module")
def plugin() -> Path:
    return built("harness") / library_file("trt_host")


def model(kind: str, dtype: int = FLOAT, width: int = 96, **attributes: int) -> bytes:
    """One node without its function: RTX would import the function in place of the plugin."""
    g = GraphBuilder(kind, custom_domains={DOMAIN: 1})
    scan = kind == "scan"
    axes = ("t", "b", width) if scan else ("b", width)
    inputs = [g.input(n, dtype, axes) for n in ("x", "gate_x", "gate_a")]
    inputs.append(g.const(np.linspace(-1, -0.01, width, dtype=np.float32)))
    inputs.append(g.input("state", FLOAT, ("b", width)))
    inputs.append(g.input("position", INT64, ("b",)))
    inputs.append(g.input("lengths", INT64, ("b",)) if scan else g.input("active", BOOL, ("b",)))
    y, state = g.ops(SCAN if scan else STEP, *inputs, outputs=2, domain=DOMAIN, **attributes)
    g.output("y", y, dtype, axes)
    g.output("state_out", state, FLOAT, ("b", width))
    return bytes(g.model().SerializeToString())


def ring_model(kind: str, ring: str = "float32", **attributes: int | str) -> bytes:
    """One ``attend`` or ``scan`` node, its function taken out as well."""
    made = node_model(kind, shape_of(4, 2, 8, 16, ring))
    del made.functions[:]
    for node in made.graph.node:
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    return bytes(made.SerializeToString())


def build(links: Path, folder: Path, content: bytes, *options: str) -> dict:
    path = folder / "model.onnx"
    path.write_bytes(content)
    command = [str(PYTHON), str(WORKER), str(path), "8", "64", *options]
    environment = os.environ | {"LD_LIBRARY_PATH": str(links)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) | {"stderr": done.stderr}


@pytest.mark.parametrize("kind", ["step", "scan"])
@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
def test_an_engine_with_the_plugin_is_built(links, plugin, tmp_path, kind, dtype):
    result = build(links, tmp_path, model(kind, dtype), "--plugin", str(plugin))
    assert result["parsed"], result["errors"]
    assert "PLUGIN_V3" in result["layers"]
    assert result["errors"] == []
    assert result["bytes"] > 50_000


def test_the_plugin_on_cuda_kernels_is_built_in_too(links, tmp_path):
    cuda_plugin = built("tensorrt") / library_file("trt")
    for content in (model("scan"), ring_model("attend"), ring_model("scan", "int8")):
        result = build(links, tmp_path, content, "--plugin", str(cuda_plugin))
        assert "PLUGIN_V3" in result["layers"]
        assert result["bytes"] > 50_000, result["errors"]


@pytest.mark.parametrize("kind", ["step", "scan"])
def test_aliased_state_needs_the_preview_feature(links, plugin, tmp_path, kind):
    refused = build(links, tmp_path, model(kind, aliased=1), "--plugin", str(plugin))
    assert refused["bytes"] == 0
    assert any("ALIASED_PLUGIN_IO_10_03" in e for e in refused["errors"])
    taken = build(links, tmp_path, model(kind, aliased=1), "--plugin", str(plugin), "--aliased")
    assert taken["bytes"] > 50_000, taken["errors"]


@pytest.mark.parametrize("ring", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["attend", "scan"])
def test_an_engine_with_the_attention_ring_is_built(links, plugin, tmp_path, kind, ring):
    result = build(links, tmp_path, ring_model(kind, ring), "--plugin", str(plugin))
    assert result["parsed"], result["errors"]
    assert result["layers"].count("PLUGIN_V3") == 1
    assert result["errors"] == []
    assert result["bytes"] > 50_000


@pytest.mark.parametrize("ring", ["float32", "int8"])
def test_a_chunks_rings_may_be_written_in_place(links, plugin, tmp_path, ring):
    options = ("--plugin", str(plugin), "--aliased")
    result = build(links, tmp_path, ring_model("scan", ring, aliased=1), *options)
    assert result["bytes"] > 50_000, result["errors"]
    refused = build(links, tmp_path, ring_model("attend", ring, aliased=1), *options)
    assert refused["bytes"] == 0
    assert "writes no state" in refused["plugin_error"]


def test_a_ring_of_another_type_is_refused(links, plugin, tmp_path):
    """Numbers of eight bits need the form with scales, which in turn takes nothing else."""
    model = onnx.load_from_string(ring_model("attend", "int8"))
    for value in model.graph.input:
        if value.name in ("key", "value"):
            value.type.tensor_type.elem_type = FLOAT
    result = build(links, tmp_path, bytes(model.SerializeToString()), "--plugin", str(plugin))
    assert result["bytes"] == 0
    assert "RingAttendInt8: input 3 has a type" in result["plugin_error"]


def test_what_is_wrong_is_said(links, plugin, tmp_path):
    missing = build(links, tmp_path, model("step"))
    assert not missing["parsed"]
    assert any("RGLRUStep" in note for note in missing["notes"] + missing["errors"])
    for attributes, words in (
        ({"aliased": 2}, "aliased must be 0 or 1"),
        ({"schema": 9}, "schema 9"),
    ):
        result = build(links, tmp_path, model("step", **attributes), "--plugin", str(plugin))
        assert result["bytes"] == 0
        assert words in result["plugin_error"]  # RTX says only that it could not create the plugin
        assert words in result["stderr"]
    for newer in (model("step", plugin_version="2"), ring_model("scan", plugin_version="2")):
        assert not build(links, tmp_path, newer, "--plugin", str(plugin))["parsed"]

"""Explicit quantization: graphs that TensorRT can read precision off, and that still compute the model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from speechssm.bundle import open_bundle, tensors
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtOptions
from speechssm.engines.verify import verify_bundle
from speechssm.export.calibrate import activation_ranges
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.exporter import export_models
from speechssm.export.models.transformer import transformer_shape
from speechssm.export.quantize import quantize_fp8, through_fp8
from speechssm.export.storage import Storage
from tests.doubles.lm import TINY

EXPLICIT: list[Storage] = ["qdq_int8", "qdq_fp8"]
WIDE = LMShape(
    vocab=70, width=144, lru_width=136, heads=4, kv_heads=1, head_dim=36, window=11, mlp_width=200,
    blocks=("recurrent", "attention", "recurrent"), tied_head=False,
)  # fmt: skip
RTX = Path(os.environ.get("SPEECHSSM_RTX_PYTHON", Path.home() / ".cache/speechssm/venv-rtx/bin/python"))


def export(folder: Path, shape: LMShape, storage: Storage) -> dict[str, object]:
    manifest = export_models(
        "explicit", {"lm": shape}, {"lm": seeded_griffin(shape, 1)}, folder, about="", storage=storage,
        rollout=40, threads=1,
    )  # fmt: skip
    return manifest.parity


@pytest.mark.parametrize("storage", EXPLICIT)
@pytest.mark.parametrize(
    "shape", [TINY, WIDE, transformer_shape(TINY, "mha", block=16)], ids=["tiny", "wide", "grow"]
)
def test_exports_pass_their_gate(tmp_path: Path, shape: LMShape, storage: Storage) -> None:
    parity = export(tmp_path / "out", shape, storage)
    assert parity["passed"]
    list(verify_bundle(open_bundle(tmp_path / "out"), OrtOptions(threads=1)))


@pytest.mark.parametrize("storage", EXPLICIT)
def test_every_product_reads_two_dequantized_values(tmp_path: Path, storage: Storage) -> None:
    """What TensorRT asks of explicit quantization: constant scales, zero points of 0, 8 bits on both sides."""
    export(tmp_path / "out", WIDE, storage)
    kinds = {"qdq_int8": ("I8", onnx.TensorProto.INT8), "qdq_fp8": ("F8_E4M3", onnx.TensorProto.FLOAT8E4M3FN)}
    entries = tensors.read_header(tmp_path / "out" / "lm.safetensors")
    for name in ("lm_step", "lm_chunk"):
        graph = onnx.load(tmp_path / "out" / f"{name}.onnx", load_external_data=False).graph
        makers = {output: node for node in graph.node for output in node.output}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        products = [
            n for n in graph.node
            if n.op_type == "MatMul" and n.input[1] in makers and makers[n.input[1]].op_type == "DequantizeLinear"
        ]  # fmt: skip
        # 3 linear layers of 2 recurrent blocks, 4 of 1 attention, 3 of each MLP, and the head of the step graph.
        assert len(products) == 6 + 4 + 9 + (name == "lm_step")
        for product in products:
            weight, activation = makers[product.input[1]], makers[product.input[0]]
            assert activation.op_type == "DequantizeLinear"
            assert makers[activation.input[0]].op_type == "QuantizeLinear"
            stored = constants[weight.input[0]]
            assert stored.data_type == kinds[storage][1]
            assert entries[weight.input[0].split(":")[1]].dtype == kinds[storage][0]
            assert all(node.input[1] in constants for node in (weight, activation))
            zero = numpy_helper.to_array(constants[activation.input[2]])
            assert float(zero) == 0


def test_ranges_are_what_the_products_read(tmp_path: Path) -> None:
    """The head reads a normed row: its range is what the norm's scale lets through."""
    ranges = activation_ranges(TINY, seeded_griffin(TINY, 3), tmp_path, threads=1)
    assert ranges["head"] <= np.sqrt(TINY.width) + 1e-3
    assert ranges["L00.linear_x.weight"] == ranges["L00.linear_y.weight"] > 0
    assert ranges.keys() >= {"L02.q.weight", "L02.out.weight", "L04.mlp.down.weight"}
    assert list(tmp_path.iterdir()) == []


def test_float8_is_within_half_a_step(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((40, 30)).astype(np.float32)
    numbers, scale = quantize_fp8(matrix)
    assert numbers.dtype == np.uint8
    assert scale.shape == ()
    back = through_fp8(matrix)
    assert (np.abs(back - matrix) <= np.maximum(np.abs(matrix) / 16, float(scale) * 2**-10) * 1.001).all()
    assert (through_fp8(np.zeros((3, 3), np.float32)) == 0).all()


_BUILD = """
import json, sys, tensorrt_rtx as trt
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self); self.errors = []
    def log(self, severity, text):
        if severity <= trt.ILogger.Severity.ERROR: self.errors.append(text)
log = Log(); builder = trt.Builder(log); network = builder.create_network(0)
parsed = trt.OnnxParser(network, log).parse_from_file(sys.argv[1])
size, kinds = 0, []
if parsed:
    kinds = sorted({network.get_layer(i).type.name for i in range(network.num_layers)})
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        t = network.get_input(i); rest = tuple(t.shape)[1:]
        profile.set_shape(t.name, (1, *rest), (2, *rest), (4, *rest))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config); size = engine.nbytes if engine else 0
print(json.dumps({"parsed": parsed, "bytes": size, "layers": kinds, "errors": log.errors}))
"""


@pytest.mark.rtx
@pytest.mark.parametrize("storage", EXPLICIT)
def test_tensorrt_rtx_builds_the_step_graph(tmp_path: Path, storage: Storage) -> None:
    """The parser takes every node and weight, and the builder makes an engine; running one needs a device."""
    if not RTX.is_file():
        pytest.skip("needs TensorRT-RTX in an environment of its own: see tests/cpp_ext/test_rtx_build.py")
    export(tmp_path / "out", WIDE, storage)
    done = subprocess.run(
        [str(RTX), "-c", _BUILD, str(tmp_path / "out" / "lm_step.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["errors"] == []
    assert made["bytes"] > 0
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(made["layers"])

"""Integer weights: the numbers, the graphs that use them, and what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from speechssm.bundle.manifest import Manifest
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.exporter import export_models
from speechssm.export.models.transformer import transformer_shape
from speechssm.export.parity.rollout import State, garbage_state
from speechssm.export.quantize import BLOCK, dequantize, quantize, quantize_columns
from speechssm.export.storage import Storage
from tests.doubles.lm import TINY

INTEGERS: list[Storage] = ["dynamic_int8", "int8", "int4"]
# Wider than one block of 128 and no multiple of it, so that blocks are cut and padded.
WIDE = LMShape(
    vocab=70, width=144, lru_width=136, heads=4, kv_heads=1, head_dim=36, window=11, mlp_width=200,
    blocks=("recurrent", "attention", "recurrent"),
)  # fmt: skip


def export(folder: Path, shape: LMShape, storage: Storage, seed: int = 1, steps: int = 40) -> Manifest:
    return export_models(
        "quantized", {"lm": shape}, {"lm": seeded_griffin(shape, seed)}, folder, about="", storage=storage,
        rollout=steps, threads=1,
    )  # fmt: skip


def opened(folder: Path, manifest: Manifest, name: str) -> OrtGraph:
    entry = manifest.graphs[name]
    return OrtGraph(name, folder / entry.file, entry, OrtOptions(threads=1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [1, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_blocks_are_within_half_a_step(bits: int, inputs: int, rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((5, inputs), np.float32) * rng.choice([1e-3, 1, 1e3], (5, 1)).astype(
        np.float32
    )
    matrix[2] = 0
    numbers, scale = quantize(matrix, bits)
    blocks = -(-inputs // BLOCK)
    assert numbers.shape == (5, blocks, BLOCK * bits // 8)
    assert numbers.dtype == np.uint8
    back = dequantize(numbers, scale, inputs, bits)
    step = np.repeat(np.abs(scale), BLOCK, 1)[:, :inputs]
    # The short end of the range costs one step more.
    assert (np.abs(back - matrix) <= 1.0001 * step + 1e-30).all()
    largest = np.abs(matrix[:, :BLOCK]).argmax(1)
    assert np.allclose(back[range(5), largest], matrix[range(5), largest], rtol=1e-6)
    assert (back[2] == 0).all()


def test_columns_are_within_half_a_step(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((33, 7), np.float32)
    matrix[:, 3] = 0
    numbers, scale = quantize_columns(matrix)
    assert numbers.dtype == np.int8
    assert np.abs(numbers).max() == 127
    assert (np.abs(numbers * scale - matrix) <= 0.5001 * scale).all()


@pytest.mark.parametrize("storage", INTEGERS)
@pytest.mark.parametrize("shape", [TINY, WIDE], ids=["tiny", "wide"])
def test_exports_pass_their_gate(tmp_path: Path, storage: Storage, shape: LMShape) -> None:
    manifest = export(tmp_path / "out", shape, storage)
    assert manifest.lm.storage == storage
    assert manifest.parity["passed"]
    if storage == "dynamic_int8":
        assert manifest.parity["chunked_bit_exact"]
        assert manifest.parity["rows_bit_exact"]
    names = {
        n.op_type for n in onnx.load(tmp_path / "out" / "lm_step.onnx", load_external_data=False).graph.node
    }
    assert ("MatMulInteger" if storage == "dynamic_int8" else "MatMulNBits") in names


def test_sizes(tmp_path: Path) -> None:
    shape = WIDE.model_copy(update={"rope": "none", "width": 256, "mlp_width": 768})
    sizes = {
        storage: export(tmp_path / storage, shape, storage, steps=4).files["lm.safetensors"].size_bytes
        for storage in ("float32", *INTEGERS)
    }
    assert sizes["int4"] < sizes["int8"] < 0.45 * sizes["float32"]
    assert sizes["dynamic_int8"] < 0.45 * sizes["float32"]


def test_a_wrong_weight_misses_the_wider_gate(tmp_path: Path) -> None:
    class Turned(dict[str, np.ndarray]):
        reads = 0

        def __getitem__(self, name: str) -> np.ndarray:
            value = super().__getitem__(name)
            if name == "layers.0.temporal.linear_x.weight":
                self.reads += 1
                # Numbers and scales are read one after the other; the reference comes third.
                return value if self.reads <= 2 else value[::-1]
            return value

    turned = Turned(seeded_griffin(TINY, 2))
    with pytest.raises(ExportError, match="state L00"):
        export_models(
            "x", {"lm": TINY}, {"lm": turned}, tmp_path / "x", about="", storage="int8", rollout=9, threads=1
        )


@pytest.mark.parametrize("storage", INTEGERS)
@pytest.mark.parametrize("kind", ["lru", "conv", "key", "value"])
def test_nan_in_a_row_is_seen_and_stays_there(
    tmp_path: Path, storage: Storage, kind: str, rng: np.random.Generator
) -> None:
    """Cutting a NaN to an integer would hide it from the watchdog."""
    manifest = export(tmp_path / "out", TINY, storage, steps=4)
    graph = opened(tmp_path / "out", manifest, "lm_step")
    entry = manifest.graphs["lm_step"]
    state: State = {k: np.zeros_like(v) for k, v in garbage_state(entry, 3, TINY.window, rng).items()}
    state["position"][:] = 5
    name = next(k for k in state if k.endswith(f"_{kind}"))
    state[name][1].reshape(-1)[3] = np.nan
    inputs = {
        "token": rng.integers(0, TINY.vocab, 3),
        "active": np.ones(3, bool),
        "temperature": np.ones(3, np.float32),
        "top_k": np.zeros(3, np.int64),
        "top_p": np.ones(3, np.float32),
        "uniform": np.full(3, 0.5, np.float32),
        **{f"in_{k}": v for k, v in state.items()},
    }
    assert np.isnan(graph.call(inputs, ["health"])[0]).tolist() == [False, True, False]


@pytest.mark.parametrize("storage", INTEGERS)
def test_transformer_with_a_growing_cache(tmp_path: Path, storage: Storage) -> None:
    shape = transformer_shape(TINY, "mqa", block=16)
    assert export(tmp_path / "out", shape, storage, steps=20).parity["passed"]

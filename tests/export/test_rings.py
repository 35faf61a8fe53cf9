"""Attention rings kept as float16 or int8: fewer bytes, the same promises, the recurrence in float32 still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.bundle import open_bundle, state_bytes
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.engines.verify import verify_bundle
from speechssm.errors import ExportError
from speechssm.export import exporter
from speechssm.export.checkpoints.seeded import seeded_griffin
from speechssm.export.exporter import Ring, export_models, export_preset
from speechssm.export.models.griffin import lm_state
from speechssm.export.models.transformer import transformer_shape
from speechssm.export.presets import PRESETS
from speechssm.export.storage import Storage
from tests.doubles.lm import TINY

RINGS: list[Ring] = ["float16", "int8"]
WIDE = LMShape(
    vocab=70, width=144, lru_width=136, heads=4, kv_heads=1, head_dim=36, window=11, mlp_width=200,
    blocks=("recurrent", "attention", "recurrent", "attention"),
)  # fmt: skip


def export(
    folder: Path, shape: LMShape, ring: Ring, storage: Storage = "float32", steps: int = 60
) -> dict[str, object]:
    shape = shape.model_copy(update={"ring": ring})
    manifest = export_models(
        "ring", {"lm": shape}, {"lm": seeded_griffin(shape, 1)}, folder, about="", storage=storage,
        rollout=steps, threads=1,
    )  # fmt: skip
    return manifest.parity


@pytest.mark.parametrize("storage", ["float32", "dynamic_int8"])
@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("shape", [TINY, WIDE], ids=["tiny", "one head"])
def test_an_export_passes_and_is_exact(tmp_path: Path, shape: LMShape, ring: Ring, storage: Storage) -> None:
    parity = export(tmp_path / "out", shape, ring, storage)
    assert parity["chunked_bit_exact"]
    assert parity["rows_bit_exact"]
    list(verify_bundle(open_bundle(tmp_path / "out"), OrtOptions(threads=1)))
    if ring == "float16" and storage == "float32":
        assert parity["largest_state_difference"] < 5e-3  # type: ignore[operator]


@pytest.mark.parametrize("ring", RINGS)
def test_a_cache_that_grows_may_be_narrow(tmp_path: Path, ring: Ring) -> None:
    assert export(tmp_path / "out", transformer_shape(TINY, "mqa", block=16), ring)["passed"]


def test_the_recurrence_stays_float32_and_the_ring_shrinks() -> None:
    shape = PRESETS["2b"].lm
    sizes = {}
    for ring in ("float32", "float16", "int8"):
        schema = lm_state(shape.model_copy(update={"ring": ring}))
        assert {s.dtype for s in schema if s.kind in ("lru", "conv")} == {"float32"}
        sizes[ring] = state_bytes(schema)
    recurrent = shape.recurrent_bytes
    assert (sizes["float16"] - recurrent) * 2 == sizes["float32"] - recurrent
    assert (sizes["int8"] - recurrent) * 4 < 1.02 * (sizes["float32"] - recurrent)


def test_the_reference_tells_a_narrow_ring_from_a_wide_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 ring where float32 was meant misses the float32 gate: the comparison sees the ring."""
    monkeypatch.setattr(exporter, "check_lm", _against_float32(exporter.check_lm))
    with pytest.raises(ExportError, match=r"state L0\d_(key|value) differs"):
        export(tmp_path / "out", TINY, "int8")


def _against_float32(check):  # type: ignore[no-untyped-def]
    def run(folder, graphs, shape, parameters, **given):  # type: ignore[no-untyped-def]
        return check(
            folder,
            graphs,
            shape.model_copy(update={"ring": "float32"}),
            parameters,
            **{**given, "gate": exporter.gate_of("float32", "float32")},
        )

    return run


def test_a_number_that_is_not_finite_is_told(tmp_path: Path) -> None:
    """NaN cannot lie in an int8 ring; its scale shows it, in the step and in the chunk graph."""
    export(tmp_path / "out", TINY, "int8")
    bundle = open_bundle(tmp_path / "out")
    shape, schema = bundle.manifest.lm.shape, bundle.manifest.graphs["lm_step"].state
    state = {f"in_{s.name}": np.zeros((2, *s.shape), s.dtype) for s in schema}
    state["in_position"][:] = 5
    name = next(s.name for s in schema if s.kind == "scale")
    state[f"in_{name}"][1, 3] = np.nan
    step = OrtGraph("lm_step", *bundle.graph("lm_step"), OrtOptions(threads=1))
    given = {
        "token": np.zeros(2, np.int64), "active": np.ones(2, np.bool_), "temperature": np.ones(2, np.float32),
        "top_k": np.zeros(2, np.int64), "top_p": np.ones(2, np.float32), "uniform": np.zeros(2, np.float32),
    }  # fmt: skip
    assert np.isfinite(step.call({**given, **state}, ["health"])[0]).tolist() == [True, False]
    chunk = OrtGraph("lm_chunk", *bundle.graph("lm_chunk"), OrtOptions(threads=1))
    tokens = {"tokens": np.zeros((2, 3), np.int64), "lengths": np.full(2, 3, np.int64)}
    assert np.isfinite(chunk.call({**tokens, **state}, ["health"])[0]).tolist() == [True, False]
    assert shape.ring == "int8"


@pytest.mark.parametrize("ring", RINGS)
def test_s6_sessions_save_and_restore_narrow_rings(tmp_path: Path, ring: Ring) -> None:
    export_preset("tiny", tmp_path / "out", ring=ring, rollout=20, threads=1)
    model = speechssm.load(tmp_path / "out", threads=1)
    audio = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)
    with model.open(audio, rate_hz=16_000, seed=2, ramp=True) as session:
        list(session.stream(3))
        session.snapshot(tmp_path / "saved.safetensors")
        going_on = np.concatenate(list(session.stream(3)))
    restored = model.restore(tmp_path / "saved.safetensors")
    assert np.array_equal(np.concatenate(list(restored.stream(3))), going_on)

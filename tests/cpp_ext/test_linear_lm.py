"""Language models whose layers are the linear and recurrent operators: the promises of the plain graphs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from speechssm.bundle import open_bundle
from speechssm.engines.ort import OrtOptions
from speechssm.engines.prepare import prepare
from speechssm.engines.verify import verify_bundle
from speechssm.errors import EngineError, ExportError
from speechssm.export.exporter import export_preset
from speechssm.export.graphs.lm import build_lm_step
from speechssm.export.models.transformer import transformer_shape
from speechssm.export.storage import STORED, Storage
from speechssm.perf.lm import contestant
from tests.doubles.lm import TINY, ToyLM, rows_of, same, toy_lm

WIDE = TINY.model_copy(update={"width": 130, "mlp_width": 70, "rope": "none", "activation": "silu"})
CASES = {
    "tiny": (TINY, "float32"),
    "wide": (WIDE, "float32"),
    "one head": (TINY.model_copy(update={"heads": 1, "kv_heads": 1}), "float32"),
    "float16": (TINY, "float16"),
    "bfloat16": (TINY, "bfloat16"),
    "int8": (TINY, "int8"),
    "int4": (WIDE, "int4"),
    "mha": (transformer_shape(TINY, "mha", capacity=16), "float32"),
    "grows": (transformer_shape(TINY, "mqa", block=16), "int8"),
}
ROUNDING = {"int8": 0.3, "int4": 0.5}
"""Of logits: a number of the plain graph may be cut to 8 bits on the other side."""


class Pair(NamedTuple):
    """The plain graphs, and those with operators and kernels."""

    plain: ToyLM
    op: ToyLM
    storage: Storage


@pytest.fixture(scope="module", params=list(CASES))
def pair(request, tmp_path_factory, library) -> Pair:
    folder = tmp_path_factory.mktemp("linear")
    shape, storage = CASES[request.param]
    plain = toy_lm(folder / "plain", shape, storage=storage)
    return Pair(
        plain, toy_lm(folder / "op", shape, storage=storage, linear_op=True, library=library), storage
    )


def run(toy: ToyLM, tokens: np.ndarray, cut: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits after a chunk of ``cut`` tokens of ragged rows, then step by step; one row pauses."""
    _, state = toy.chunk(tokens[:, :cut], [cut, 3, 0], toy.zeros(3))
    logits = []
    for t in range(cut, tokens.shape[1]):
        out, state = toy.step(tokens[:, t], state, np.array([True, True, t % 3 > 0]))
        assert np.isfinite(out["health"]).all()
        logits.append(out["logits"])
    return np.stack(logits), state


def test_says_what_the_plain_graph_says(pair):
    plain, op, storage = pair
    tokens = np.random.default_rng(0).integers(0, plain.shape.vocab, (3, 15))
    (want, state), (got, state_too) = (run(toy, tokens, 6) for toy in (plain, op))
    bound = ROUNDING.get(storage, 1e-4)
    assert np.abs(got - want).max() < bound
    if storage not in ROUNDING:
        for name, array in state.items():
            np.testing.assert_allclose(state_too[name], array, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_without_the_library_too(case, tmp_path):
    shape, storage = CASES[case]
    graphs = (toy_lm(tmp_path / str(op), shape, storage=storage, linear_op=op) for op in (False, True))
    tokens = np.random.default_rng(1).integers(0, shape.vocab, (3, 12))
    (want, _), (got, _) = (run(toy, tokens, 5) for toy in graphs)
    assert np.abs(got - want).max() < 1e-4


def test_whole_chunks_and_steps_give_the_same_state_bit_for_bit(pair):
    """In every storage: with its own kernel, integers in blocks are exact too (S1)."""
    op = pair.op
    length = 15
    tokens = np.random.default_rng(2).integers(0, op.shape.vocab, (2, length))
    _, whole = op.chunk(tokens, [length] * 2, op.zeros(2))
    _, stepped = op.stepwise(tokens, op.zeros(2))
    state = op.zeros(2)
    for at in range(0, length, 4):
        piece = tokens[:, at : at + 4]
        _, state = op.chunk(piece, [piece.shape[1]] * 2, state)
    assert same(whole, stepped)
    assert same(whole, state)


def test_batch_mates_and_threads_change_no_bit(pair, library, tmp_path):
    op = pair.op
    tokens = np.random.default_rng(3).integers(0, op.shape.vocab, (11, 6))
    together = op.zeros(11)
    for t in range(6):
        out, together = op.step(tokens[:, t], together)
    alone = op.zeros(1)
    for t in range(6):
        one, alone = op.step(tokens[4:5, t], alone)
    assert same(rows_of(together, [4]), alone)
    assert out["logits"][4].tobytes() == one["logits"][0].tobytes()
    threaded = toy_lm(tmp_path, op.shape, storage=pair.storage, linear_op=True, library=library, threads=2)
    (out, _), (out_too, _) = (toy.step(tokens[:, 0], toy.zeros(11)) for toy in (op, threaded))
    assert out["logits"].tobytes() == out_too["logits"].tobytes()


def test_a_damaged_state_shows_in_its_row_alone(pair):
    op = pair.op
    if "recurrent" not in op.shape.blocks:
        pytest.skip("a Transformer has no recurrent state")
    tokens = np.random.default_rng(4).integers(0, op.shape.vocab, (3, 4))
    _, state = op.chunk(tokens, [4, 4, 4], op.zeros(3))
    lru = next(s for s in state if s.endswith("_lru"))
    conv = next(s for s in state if s.endswith("_conv"))
    for name, number in ((lru, np.nan), (lru, np.inf), (conv, np.nan)):
        bad = {k: v.copy() for k, v in state.items()}
        bad[name][1].flat[3] = number
        out, _ = op.step(tokens[:, 0], bad)
        assert np.isnan(out["health"]).tolist() == [False, True, False], (name, number)
        paused, kept = op.step(tokens[:, 0], bad, np.array([True, False, True]))
        assert (paused["health"] >= 0).all(), "a row that does not run has no damage to tell"
        assert kept[name][1].tobytes() == bad[name][1].tobytes()


def test_a_slot_that_held_anything_starts_clean(pair):
    op = pair.op
    fresh, dirty = op.zeros(2), op.zeros(2)
    for name, array in dirty.items():
        if array.dtype.kind == "f" and name.endswith(("_lru", "_conv")):
            array[1] = np.nan
    (out, _), (out_too, _) = (op.step(np.array([1, 2]), state) for state in (fresh, dirty))
    assert out["logits"].tobytes() == out_too["logits"].tobytes()
    assert np.isfinite(out_too["health"]).all()


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_an_export_with_the_operators_is_a_bundle_like_any(library, tmp_path: Path, storage):
    manifest = export_preset(
        "tiny", tmp_path / "out", storage=storage, linear_op=True, ring_op=True, rollout=60, threads=1
    )
    assert manifest.parity
    bundle = open_bundle(tmp_path / "out")
    list(verify_bundle(bundle, OrtOptions(threads=1)))
    list(verify_bundle(bundle, OrtOptions(threads=1, custom_ops=library)))
    names = {f.name for f in onnx.load(bundle.graph("lm_step")[0], load_external_data=False).functions}
    ending = "Blocks" if storage == "int8" else ""
    layers = {f"{n}{ending}" for n in ("NormLinear", "NormActivatedLinear", "NormGatedLinear", "AddLinear")}
    assert names == layers | {"RGLRUStep", "RecurrentStep", "RingAttend", "RingWrite", "SampleToken"}


def test_engines_refuse_what_is_for_processors(tmp_path: Path):
    export_preset("tiny", tmp_path / "out", linear_op=True, rollout=4, threads=1)
    bundle = open_bundle(tmp_path / "out")
    with pytest.raises(EngineError, match="export without --linear-op"):
        prepare(bundle, "lm_step", tmp_path / "engine")


def test_a_step_is_few_nodes(tmp_path: Path):
    """What the operators are for: a recurrent block is six nodes, where it was seventy."""
    counts = {
        op: len(build_lm_step(TINY, ring_op=op, linear_op=op).model().graph.node) for op in (False, True)
    }
    more = TINY.model_copy(update={"blocks": (*TINY.blocks, "recurrent")})
    assert len(build_lm_step(more, ring_op=True, linear_op=True).model().graph.node) - counts[True] <= 10
    assert counts[True] < 0.6 * counts[False]


@pytest.mark.parametrize("storage", ["dynamic_int8", "qdq_int8"])
def test_storages_the_operators_do_not_read_are_refused(storage):
    with pytest.raises(ExportError, match="export without them"):
        build_lm_step(TINY, STORED[storage], linear_op=True)


def test_the_bench_compares_models_on_the_operators(library, tmp_path: Path):
    """``speechssm bench lm --native``: both contestants step on kernels, at positions past the ring."""
    for name, shape in (("griffin", TINY), ("mha", transformer_shape(TINY, "mha", block=16))):
        options = OrtOptions(threads=1, custom_ops=library)
        one = contestant(name, shape, tmp_path / name, dtype="int8", options=options)
        functions = {
            f.name for f in onnx.load(tmp_path / name / "lm_step.onnx", load_external_data=False).functions
        }
        assert {"NormLinearBlocks", "RingAttend"} <= functions
        assert not one.rows_at(3, 40).pool.step().failed

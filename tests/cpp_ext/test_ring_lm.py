"""Language models whose attention is the ring operator: the promises of the plain graphs, and their tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from speechssm.bundle import open_bundle
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtOptions
from speechssm.engines.prepare import prepare
from speechssm.engines.verify import verify_bundle
from speechssm.errors import ExportError
from speechssm.export.exporter import export_preset
from speechssm.export.graphs.lm import build_lm_step
from speechssm.export.models.transformer import transformer_shape
from tests.doubles.lm import TINY, ToyLM, rows_of, same, toy_lm

GROWS = transformer_shape(TINY, "mha", block=16)
SHAPES = {
    "tiny": TINY,
    "int8": TINY.model_copy(update={"ring": "int8"}),
    "float16": TINY.model_copy(update={"ring": "float16"}),
    "one head each": TINY.model_copy(update={"kv_heads": 4, "window": 5}),
}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory, library) -> tuple[ToyLM, ToyLM]:
    """The plain graphs, and those with the operator and its kernel."""
    folder = tmp_path_factory.mktemp("ring")
    shape: LMShape = SHAPES[request.param]
    return toy_lm(folder / "plain", shape), toy_lm(folder / "op", shape, ring_op=True, library=library)


def spoken(toy: ToyLM, steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Tokens (t,b) sampled after a ragged prompt, one stream pausing every third step."""
    rng = np.random.default_rng(5)
    _, state = toy.chunk(rng.integers(0, toy.shape.vocab, (3, 9)), [9, 0, 4], toy.zeros(3))
    token, said = np.zeros(3, np.int64), []
    for t in range(steps):
        active = np.array([True, True, t % 3 > 0])
        out, state = toy.step(token, state, active, uniform=rng.random(3))
        token = np.where(active, out["token_out"], token)
        said.append(token)
        assert np.isfinite(out["health"]).all()
    return np.stack(said), state


def test_same_tokens_as_the_plain_graph(pair):
    plain, op = (spoken(toy, 4 * toy.shape.window) for toy in pair)
    assert np.array_equal(plain[0], op[0])
    for name, array in plain[1].items():
        if array.dtype == np.float32 and not name.endswith("scale"):
            np.testing.assert_allclose(op[1][name], array, atol=2e-5)


def test_without_the_library_the_bits_are_the_plain_graphs(tmp_path):
    graphs = toy_lm(tmp_path / "plain"), toy_lm(tmp_path / "op", ring_op=True)
    (said, state), (said_too, state_too) = (spoken(toy, 40) for toy in graphs)
    assert np.array_equal(said, said_too)
    assert same(state, state_too)


def test_whole_chunks_and_steps_give_the_same_state_bit_for_bit(pair):
    _, op = pair
    tokens = np.random.default_rng(1).integers(0, op.shape.vocab, (2, 3 * op.shape.window + 1))
    _, whole = op.chunk(tokens, [tokens.shape[1]] * 2, op.zeros(2))
    _, stepped = op.stepwise(tokens, op.zeros(2))
    state, at = op.zeros(2), 0
    while at < tokens.shape[1]:
        piece = tokens[:, at : at + 7]
        _, state = op.chunk(piece, [piece.shape[1]] * 2, state)
        at += 7
    assert same(whole, stepped)
    assert same(whole, state)


def test_batch_mates_and_threads_change_no_bit(pair, library, tmp_path):
    _, op = pair
    tokens = np.random.default_rng(2).integers(0, op.shape.vocab, (5, 20))
    _, together = op.chunk(tokens, [20, 3, 20, 0, 11], op.zeros(5))
    _, alone = op.chunk(tokens[2:3], [20], op.zeros(1))
    assert same(rows_of(together, [2]), alone)
    threaded = toy_lm(tmp_path, op.shape, ring_op=True, library=library, threads=2)
    assert same(threaded.chunk(tokens, [20, 3, 20, 0, 11], op.zeros(5))[1], together)


def test_a_slot_that_held_anything_starts_clean(pair):
    """Rings full of NaN (or of NaN scales) under a row at position 0: the kernel never reads them."""
    _, op = pair
    fresh, dirty = op.zeros(2), op.zeros(2)
    for array in dirty.values():
        if array.dtype.kind == "f":
            array[1] = np.nan
    tokens = np.random.default_rng(3).integers(0, op.shape.vocab, (2, 30))
    for t in range(30):
        (out, fresh), (out_too, dirty) = op.step(tokens[:, t], fresh), op.step(tokens[:, t], dirty)
        assert out["logits"].tobytes() == out_too["logits"].tobytes()
        assert out["health"].tobytes() == out_too["health"].tobytes()


def test_a_cache_that_grows_attends_by_the_operator_too(library, tmp_path):
    plain, op = (
        toy_lm(tmp_path / "plain", GROWS),
        toy_lm(tmp_path / "op", GROWS, ring_op=True, library=library),
    )
    tokens = np.random.default_rng(4).integers(0, GROWS.vocab, (2, 14))
    results = []
    for toy in (plain, op):
        state = toy.zeros(2)
        _, state = toy.chunk(tokens[:, :9], [9, 6], state)
        results.append(toy.stepwise(tokens[:, 9:], state)[0])
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)


def test_an_export_with_the_operator_is_a_bundle_like_any(library, tmp_path):
    manifest = export_preset("tiny", tmp_path / "out", ring_op=True, rollout=60, threads=1)
    assert manifest.parity["chunked_bit_exact"]
    bundle = open_bundle(tmp_path / "out")
    list(verify_bundle(bundle, OrtOptions(threads=1)))
    list(verify_bundle(bundle, OrtOptions(threads=1, custom_ops=library)))
    names = {f.name for f in onnx.load(bundle.graph("lm_step")[0], load_external_data=False).functions}
    assert names == {"RGLRUStep", "RingAttend"}


@pytest.mark.parametrize("graph", ["lm_step", "lm_chunk"])
def test_engines_get_attention_from_the_plugin_or_written_out(graph: str, tmp_path: Path):
    export_preset("tiny", tmp_path / "out", ring_op=True, rollout=20, threads=1)
    bundle = open_bundle(tmp_path / "out")
    blocks = bundle.manifest.lm.shape.blocks
    kind = "Step" if graph == "lm_step" else "Scan"
    ours = {f"RGLRU{kind}": blocks.count("recurrent")}
    attention = {"RingAttend" if kind == "Step" else "RingScan": blocks.count("attention")}
    aliased = kind == "Step"
    for plugin, wanted in ((True, ours | attention), (False, ours)):
        made = prepare(bundle, graph, tmp_path / str(plugin), plugin=plugin, aliased=plugin and aliased)
        model = onnx.load(made.path, load_external_data=False)
        nodes = [n for n in model.graph.node if n.domain == "speechssm"]
        assert Counter(n.op_type for n in nodes) == wanted
        assert made.plugin_nodes == (sum(wanted.values()) if plugin else 0)
        assert [f.name for f in model.functions] == ([] if plugin else list(ours))
        # A step's attention writes no ring: only the recurrence has something to alias.
        assert {n.op_type for n in nodes if n.attribute} == (set(ours) if plugin and aliased else set())


def test_heads_wider_than_the_kernels_are_refused():
    with pytest.raises(ExportError, match="at most 512"):
        build_lm_step(TINY.model_copy(update={"head_dim": 516}), ring_op=True)

"""lm_step and lm_chunk on ONNX Runtime CPU: equal to PyTorch, and to each other bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from speechssm.bundle import limits
from speechssm.bundle.shapes import LMShape, griffin_blocks
from speechssm.export.models.griffin import lm_state, rotate_half
from speechssm.export.models.transformer import transformer_shape
from tests.doubles.lm import TINY, ToyLM, rows_of, same, toy_lm

ODD = {
    "mqa, odd widths": dict(width=36, lru_width=57, heads=3, kv_heads=1, head_dim=12, window=7, mlp_width=50),
    "as many KV heads as heads": dict(
        width=20, lru_width=28, heads=2, kv_heads=2, head_dim=8, window=5, mlp_width=33
    ),
    "no rotary, silu": dict(
        width=33,
        lru_width=22,
        heads=2,
        kv_heads=1,
        head_dim=5,
        window=6,
        mlp_width=31,
        rope="none",
        activation="silu",
    ),
    "untied, no cap": dict(
        width=32,
        lru_width=32,
        heads=4,
        kv_heads=4,
        head_dim=8,
        window=9,
        mlp_width=40,
        tied_head=False,
        soft_cap=None,
    ),
    "recurrent only": dict(
        width=24,
        lru_width=33,
        heads=3,
        kv_heads=1,
        head_dim=8,
        window=4,
        mlp_width=20,
        blocks=("recurrent",) * 2,
    ),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyLM:
    return toy_lm(tmp_path_factory.mktemp("toy"))


def odd_shape(name: str) -> LMShape:
    return LMShape(**{"vocab": 41, "blocks": griffin_blocks(4), **ODD[name]})


def tokens_for(toy: ToyLM, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    return rng.integers(0, toy.shape.vocab, (rows, length))


@pytest.mark.parametrize("name", [*ODD, "tiny"])
def test_s9_odd_shapes_equal_pytorch_and_wrap_the_window(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """S9: odd widths, e != d, any number of KV heads; lengths w-1, w, w+1 and far past the ring (S10)."""
    toy = toy_lm(tmp_path, TINY if name == "tiny" else odd_shape(name), seed=int(rng.integers(1 << 30)))
    w = toy.shape.window
    tokens = tokens_for(toy, rng, 2, 4 * w + 3)
    logits, stepped = toy.stepwise(tokens, toy.zeros(2))
    with torch.no_grad():
        reference, state = toy.model.double()(torch.from_numpy(tokens))
    toy.model.float()
    assert np.abs(logits - reference.numpy()).max() < 1e-4
    for key, value in state.items():
        assert np.abs(stepped[key] - value.numpy()).max() < 1e-4, key
    for length in (w - 1, w, w + 1, 4 * w + 3):
        part = tokens[:, :length]
        assert same(toy.chunk(part, [length] * 2, toy.zeros(2))[1], toy.stepwise(part, toy.zeros(2))[1])


def test_s1_whole_equals_chunks_equals_steps(toy: ToyLM, rng: np.random.Generator) -> None:
    """S1: every state tensor, bit for bit, for chunk sizes 1, 5, 7, 50, 100 and random splits."""
    tokens = tokens_for(toy, rng, 3, 100)
    _, stepped = toy.stepwise(tokens, toy.zeros(3))
    splits = [[size] * (100 // size) + [100 % size] * (100 % size > 0) for size in (1, 5, 7, 50, 100)]
    cuts = np.sort(rng.choice(np.arange(1, 100), 9, replace=False))
    splits.append(np.diff([0, *cuts, 100]).tolist())
    for split in splits:
        state, at = toy.zeros(3), 0
        for size in split:
            _, state = toy.chunk(tokens[:, at : at + size], [size] * 3, state)
            at += size
        assert same(state, stepped), split


def test_s1_chunks_and_steps_can_alternate(toy: ToyLM, rng: np.random.Generator) -> None:
    """S1: a prompt may arrive in any mixture of chunks and steps."""
    tokens = tokens_for(toy, rng, 2, 60)
    _, stepped = toy.stepwise(tokens, toy.zeros(2))
    _, state = toy.chunk(tokens[:, :17], [17, 17], toy.zeros(2))
    _, state = toy.stepwise(tokens[:, 17:31], state)
    _, state = toy.chunk(tokens[:, 31:], [29, 29], state)
    assert same(state, stepped)


def test_s2_padding_never_matters(toy: ToyLM, rng: np.random.Generator) -> None:
    """S2: ragged rows; tokens past a row's length may be any number at all, negative and huge ones too."""
    lengths = [0, 1, 13, 29, 30]
    tokens = tokens_for(toy, rng, 5, 30)
    _, before = toy.chunk(tokens[:, ::-1], [30, 7, 16, 0, 3], toy.zeros(5))
    poisoned = tokens.copy()
    for row, length in enumerate(lengths):
        poisoned[row, length:] = rng.choice([-1, -(1 << 62), toy.shape.vocab, 1 << 62, 5], 30 - length)
    health, after = toy.chunk(poisoned, lengths, before)
    assert np.isfinite(health).all()
    for row, length in enumerate(lengths):
        alone = rows_of(before, [row])
        if length:
            _, alone = toy.chunk(tokens[row : row + 1, :length], [length], alone)
        assert same(rows_of(after, [row]), alone), row


def test_s3_any_batch_mates_any_slot(toy: ToyLM, rng: np.random.Generator) -> None:
    """S3: a row's state, token, logprob and logits do not depend on who else is in the batch or where."""
    tokens = tokens_for(toy, rng, 1, 40)
    for rows in (1, 2, 3, 8, 33):
        slot = int(rng.integers(rows))
        batch = tokens_for(toy, rng, rows, 40)
        batch[slot] = tokens
        mine, both = toy.zeros(1), toy.zeros(rows)
        for t in range(40):
            out_mine, mine = toy.step(tokens[:, t], mine, uniform=0.3, top_k=5)
            out_both, both = toy.step(batch[:, t], both, uniform=0.3, top_k=5)
            for key in out_mine:
                assert out_mine[key].tobytes() == out_both[key][slot : slot + 1].tobytes(), (rows, key)
        assert same(rows_of(both, [slot]), mine)


def test_s4_a_row_at_position_zero_ignores_what_its_slot_holds(toy: ToyLM, rng: np.random.Generator) -> None:
    """S4: NaN left in the recurrence by the last stream does not reach the next one."""
    tokens = tokens_for(toy, rng, 2, 20)
    poisoned = toy.zeros(2)
    for key, value in poisoned.items():
        if key.endswith(("_lru", "_conv")):
            value[1] = np.nan
    _, clean = toy.stepwise(tokens, toy.zeros(2))
    assert same(toy.stepwise(tokens, poisoned)[1], clean)
    assert same(toy.chunk(tokens, [20, 20], poisoned)[1], clean)


def test_s5_inactive_rows_keep_their_state_bit_for_bit(toy: ToyLM, rng: np.random.Generator) -> None:
    """S5: also when the state of the inactive row is NaN, and when a neighbour is reset."""
    tokens = tokens_for(toy, rng, 3, 25)
    _, state = toy.chunk(tokens, [25] * 3, toy.zeros(3))
    for value in state.values():
        if value.dtype == np.float32:
            value[0] = np.nan
        value[2] = 0
    active = np.array([False, True, False])
    out, after = toy.step(tokens[:, 0], state, active)
    assert same(rows_of(after, [0, 2]), rows_of(state, [0, 2]))
    assert out["health"][0] == 0
    assert out["health"][2] == 0
    _, alone = toy.step(tokens[1:2, 0], rows_of(state, [1]))
    assert same(rows_of(after, [1]), alone)


@pytest.mark.parametrize("kind", ["_lru", "_conv", "_key", "_value"])
def test_health_sees_nan_anywhere_in_the_state(kind: str, toy: ToyLM, rng: np.random.Generator) -> None:
    """A NaN in one row's state shows in that row's health within one step, and in no other row's."""
    tokens = tokens_for(toy, rng, 3, 40)
    _, state = toy.chunk(tokens, [40] * 3, toy.zeros(3))
    name = next(k for k in state if k.endswith(kind))
    at = tuple(int(rng.integers(n)) for n in state[name].shape[1:])
    # An infinite key may score minus infinity with every query: then it gets no weight, as if it were not there.
    for bad in (np.nan,) if kind == "_key" else (np.nan, np.inf):
        poisoned = {k: v.copy() for k, v in state.items()}
        poisoned[name][(1, *at)] = bad
        out, after = toy.step(tokens[:, 0], poisoned)
        assert not np.isfinite(out["health"][1])
        assert np.isfinite(out["health"][[0, 2]]).all()
        clean_out, clean = toy.step(tokens[:, 0], state)
        assert same(rows_of(after, [0, 2]), rows_of(clean, [0, 2]))
        assert out["token_out"][0] == clean_out["token_out"][0]
        health, _ = toy.chunk(tokens[:, :3], [3] * 3, poisoned)
        assert not np.isfinite(health[1])
        assert np.isfinite(health[[0, 2]]).all()


def test_health_is_the_largest_lru(toy: ToyLM, rng: np.random.Generator) -> None:
    tokens = tokens_for(toy, rng, 4, 12)
    _, state = toy.chunk(tokens, [12] * 4, toy.zeros(4))
    out, after = toy.step(tokens[:, 0], state)
    largest = np.max([np.abs(v).max(1) for k, v in after.items() if k.endswith("_lru")], 0)
    assert np.array_equal(out["health"], largest)


@pytest.mark.parametrize("position", [0, 4095, 4096, 90_000, 5 * 3600 * 25, limits.POSITION - 1])
def test_rotary_angles_do_not_drift(position: int, tmp_path: Path) -> None:
    """Angles at any position come from float64 tables: as good after a week as at the start."""
    shape = LMShape(
        vocab=11, width=16, lru_width=16, heads=2, kv_heads=1, head_dim=64, window=4, mlp_width=8, blocks=("attention",)
    )  # fmt: skip
    toy = toy_lm(tmp_path, shape)
    state = toy.zeros(1)
    state["position"][:] = position
    _, after = toy.step(np.array([3]), state)
    with torch.no_grad():
        layer = toy.model.double().layers[0]
        x = layer.temporal_norm(toy.model.embed[torch.tensor([3])] * shape.embedding_scale)
        key = layer.temporal.k(x).unflatten(-1, (1, 64))
        expected = rotate_half(key, torch.tensor([[position]]), shape.rope_base).numpy()
    assert np.abs(after["L00_key"][0, position % 4] - expected[0]).max() < 2e-6


@pytest.mark.parametrize("ring_op", [False, True], ids=["nodes", "operator"])
@pytest.mark.parametrize(
    "shape",
    [TINY, transformer_shape(TINY, "mqa"), transformer_shape(TINY, "mha", capacity=16)],
    ids=["griffin", "mqa", "mha"],
)
def test_whatever_reads_a_ring_runs_before_it_is_written(
    shape: LMShape, ring_op: bool, tmp_path: Path
) -> None:
    """In the graph as ONNX Runtime optimises it: what lets a ring be one buffer for input and output."""
    toy_lm(tmp_path, shape, ring_op=ring_op)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "lm_step.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(tmp_path / "optimised.onnx"), load_external_data=False).graph.node
    maker = {name: node for node in nodes for name in node.output}

    def before(node: onnx.NodeProto) -> set[str]:
        found, todo = {node.name}, list(node.input)
        while todo:
            made = maker.get(todo.pop())
            if made is not None and made.name not in found:
                found.add(made.name)
                todo += made.input
        return found

    rings = [s.name for s in lm_state(shape) if s.in_place]
    assert rings
    for ring in rings:
        write = maker[f"out_{ring}"]
        assert write.op_type == "ScatterND"
        assert write.input[0] == f"in_{ring}", "anything between would be a copy"
        readers = {
            node.name for node in nodes if f"in_{ring}" in node.input and node.op_type not in ("Shape",)
        }
        # What only looks at it in another shape is not a reader; whoever takes that is.
        views = {node.output[0] for node in nodes if node.name in readers and node.op_type == "Reshape"}
        readers |= {node.name for node in nodes if views & set(node.input)}
        assert len(readers) >= 3
        assert readers <= before(write)

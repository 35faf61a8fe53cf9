"""Rows of the language model as the runtime drives them: prefill, masks, seeds, watchdog, save and load."""

from __future__ import annotations

import numpy as np
import pytest

from speechssm.engines.ort import OrtGraph
from speechssm.errors import EngineError, SessionFailed, SettingsError, SnapshotError
from speechssm.runtime.lm import CHUNK_TOKENS, PREFETCH, LMRows
from speechssm.runtime.settings import SamplerSettings
from speechssm.runtime.state import StateBuffers
from tests.doubles.lm import ToyLM, toy_lm

FULL = SamplerSettings()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyLM:
    return toy_lm(tmp_path_factory.mktemp("rows"), seed=1)


def prompt(toy: ToyLM, rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(0, toy.shape.vocab, length).tolist()


def admit(rows: LMRows, row: int, tokens: list[int], sampler: SamplerSettings = FULL, seed: int = 0) -> None:
    rows.start(row, tokens[0], sampler, seed)
    rows.prefill(row, tokens[1:])
    rows.active[row] = True


def speak(rows: LMRows, row: int, steps: int) -> list[int]:
    out = []
    for _ in range(steps):
        result = rows.step()
        assert result.failed == ()
        out.append(int(result.tokens[row]))
    return out


def alone(
    toy: ToyLM, tokens: list[int], steps: int, sampler: SamplerSettings = FULL, seed: int = 0
) -> list[int]:
    rows = LMRows(toy.language_model(), 1)
    admit(rows, 0, tokens, sampler, seed)
    return speak(rows, 0, steps)


@pytest.mark.parametrize("length", [1, 2, CHUNK_TOKENS, CHUNK_TOKENS + 1, CHUNK_TOKENS + 2, 300])
def test_s1_prefill_equals_feeding_by_steps(toy: ToyLM, rng: np.random.Generator, length: int) -> None:
    """S1: whatever the prompt's length, state and next token are those of single steps."""
    tokens = prompt(toy, rng, length)
    rows = LMRows(toy.language_model(), 1)
    admit(rows, 0, tokens)
    state = {k: v[None] for k, v in rows.state.save(0).items()}
    expected = toy.zeros(1)
    for token in tokens[:-1]:
        _, expected = toy.step(np.array([token]), expected)
    assert all(np.array_equal(state[k], expected[k]) for k in state)


def test_s3_tokens_do_not_depend_on_batch_or_slot(toy: ToyLM, rng: np.random.Generator) -> None:
    """S3: one seed, one stream, in any slot, with neighbours that come, go, and sample otherwise."""
    tokens = prompt(toy, rng, 37)
    expected = alone(toy, tokens, 60, seed=9)
    rows = LMRows(toy.language_model(), 5)
    slot = int(rng.integers(5))
    others = [row for row in range(5) if row != slot]
    admit(rows, others[0], prompt(toy, rng, 5), SamplerSettings(0.5, 3, 0.9), 1)
    admit(rows, slot, tokens, seed=9)
    said = []
    for step in range(60):
        if step % 7 == 3:
            row = int(rng.choice(others))
            if rows.active[row]:
                rows.clear(row)
            else:
                admit(rows, row, prompt(toy, rng, int(rng.integers(1, 40))), seed=step)
        said.append(int(rows.step().tokens[slot]))
    assert said == expected


def test_s4_a_slot_is_clean_after_nan(toy: ToyLM, rng: np.random.Generator) -> None:
    """S4: a row poisoned everywhere, cleared and given to the next stream, speaks as a fresh one."""
    tokens = prompt(toy, rng, 20)
    rows = LMRows(toy.language_model(), 2)
    admit(rows, 0, prompt(toy, rng, 30))
    for tensors in rows.state.sets:
        for array in tensors.values():
            array[0] = np.nan if array.dtype.kind == "f" else 77
    admit(rows, 0, tokens, seed=3)
    assert speak(rows, 0, 40) == alone(toy, tokens, 40, seed=3)


def test_s5_a_paused_row_goes_on_as_if_never_paused(toy: ToyLM, rng: np.random.Generator) -> None:
    """S5: its random numbers wait with it."""
    tokens = prompt(toy, rng, 12)
    rows = LMRows(toy.language_model(), 2)
    admit(rows, 0, prompt(toy, rng, 12), seed=1)
    admit(rows, 1, tokens, seed=2)
    said = speak(rows, 1, 10)
    before = rows.state.save(1)
    rows.active[1] = False
    speak(rows, 0, 13)
    after = rows.state.save(1)
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
    rows.active[1] = True
    assert said + speak(rows, 1, 10) == alone(toy, tokens, 20, seed=2)


def test_s6_save_and_load_into_another_pool(toy: ToyLM, rng: np.random.Generator) -> None:
    """S6: moved to another slot of another pool, past a block of prefetched random numbers."""
    tokens = prompt(toy, rng, 8)
    steps = PREFETCH - 5
    rows = LMRows(toy.language_model(), 1)
    admit(rows, 0, tokens, SamplerSettings(0.9, 20, 0.95), seed=5)
    speak(rows, 0, steps)
    saved = rows.save(0)
    expected = speak(rows, 0, 30)
    other = LMRows(toy.language_model(), 3)
    admit(other, 0, prompt(toy, rng, 4))
    other.load(2, saved)
    other.active[2] = True
    assert speak(other, 2, 30) == expected


def test_s8_states_are_paired_by_name(toy: ToyLM, rng: np.random.Generator) -> None:
    """S8: with inputs and outputs declared in another order, the same tokens come out."""
    tokens = prompt(toy, rng, 25)
    expected = alone(toy, tokens, 30, seed=4)
    plain = toy.plain_step
    shuffled = OrtGraph.__new__(OrtGraph)
    shuffled.__dict__.update(plain.__dict__)
    entry = plain.entry
    shuffled.entry = entry.model_copy(
        update={
            "inputs": tuple(rng.permutation(np.array(entry.inputs, object))),
            "outputs": tuple(rng.permutation(np.array(entry.outputs, object))),
        }
    )
    lm = toy.language_model()
    schema = tuple(lm.schema[i] for i in rng.permutation(len(lm.schema)))
    mixed = LMRows(type(lm)(shuffled, lm.chunk, schema, lm.vocab, lm.k_max, lm.lru_limit), 1)
    admit(mixed, 0, tokens, seed=4)
    assert speak(mixed, 0, 30) == expected


def test_the_watchdog_stops_one_row_and_no_other(toy: ToyLM, rng: np.random.Generator) -> None:
    lines = [prompt(toy, rng, 15) for _ in range(3)]
    rows = LMRows(toy.language_model(), 3)
    for row, tokens in enumerate(lines):
        admit(rows, row, tokens, seed=row)
    speak(rows, 0, 5)
    rows.state.current["L01_lru"][1, 7] = np.nan
    result = rows.step()
    assert result.failed == (1,)
    assert "slot 1" in rows.reason(1)
    rows.clear(1)
    said = [int(result.tokens[0]), *speak(rows, 0, 20)]
    assert said == alone(toy, lines[0], 26, seed=0)[5:]
    admit(rows, 1, lines[1], seed=1)
    assert speak(rows, 1, 20) == alone(toy, lines[1], 20, seed=1)


def test_the_watchdog_knows_its_limit(toy: ToyLM, rng: np.random.Generator) -> None:
    rows = LMRows(toy.language_model(lru_limit=1e-3), 1)
    rows.start(0, 3, FULL, 0)
    rows.active[0] = True
    result = rows.step()
    assert result.failed == (0,)
    assert "above the limit 0.001" in rows.reason(0)
    with pytest.raises(SessionFailed, match="above the limit"):
        rows.prefill(0, prompt(toy, rng, 5))


def test_seeds_and_settings_make_the_difference(toy: ToyLM, rng: np.random.Generator) -> None:
    tokens = prompt(toy, rng, 10)
    hot = SamplerSettings(temperature=5.0)
    assert alone(toy, tokens, 50, hot, 1) == alone(toy, tokens, 50, hot, 1)
    assert alone(toy, tokens, 50, hot, 1) != alone(toy, tokens, 50, hot, 2)
    greedy = SamplerSettings(temperature=0.0)
    assert alone(toy, tokens, 50, greedy, 1) == alone(toy, tokens, 50, greedy, 2)


@pytest.mark.parametrize("token", [-1, 64, 1 << 40])
def test_tokens_outside_the_vocabulary_are_refused(toy: ToyLM, token: int) -> None:
    rows = LMRows(toy.language_model(), 1)
    with pytest.raises(SettingsError, match="outside this model's vocabulary of 64"):
        rows.start(0, token, FULL, 0)
    rows.start(0, 0, FULL, 0)
    with pytest.raises(SettingsError, match="vocabulary"):
        rows.prefill(0, [1, token])


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": 101}, {"temperature": True},
        {"top_k": -1}, {"top_k": 2.0}, {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": float("inf")},
    ],
)  # fmt: skip
def test_sampler_settings_are_checked(bad: dict) -> None:
    with pytest.raises(SettingsError, match=next(iter(bad))):
        SamplerSettings(**bad)


def test_a_row_of_another_model_is_refused(toy: ToyLM) -> None:
    rows = LMRows(toy.language_model(), 1)
    saved = rows.save(0)
    state = dict(saved.state)
    state["L00_lru"] = state["L00_lru"][:-1]
    with pytest.raises(SnapshotError, match="L00_lru"):
        rows.load(0, type(saved)(state, 0, 0, 0, FULL))
    del state["L00_lru"]
    with pytest.raises(SnapshotError, match="L00_lru is missing"):
        rows.load(0, type(saved)(state, 0, 0, 0, FULL))
    with pytest.raises(SnapshotError, match="vocabulary"):
        rows.load(0, type(saved)(saved.state, 64, 0, 0, FULL))


def test_rings_written_in_place_equal_rings_that_are_copied(toy: ToyLM, rng: np.random.Generator) -> None:
    """Over several windows, with rows that pause, leave and arrive: every state tensor, bit for bit."""
    pools = [LMRows(toy.language_model(), 4) for _ in range(2)]
    pools[1].state = StateBuffers(pools[1].lm.schema, 4)
    pools[1]._bindings.clear()
    rings = [s.name for s in toy.language_model().schema if s.kind in ("key", "value")]
    assert all(pools[0].state.sets[0][name] is pools[0].state.sets[1][name] for name in rings)
    assert all(pools[1].state.sets[0][name] is not pools[1].state.sets[1][name] for name in rings)
    prompts = [prompt(toy, rng, int(rng.integers(1, 40))) for _ in range(4)]
    for pool in pools:
        for row, tokens in enumerate(prompts):
            admit(pool, row, tokens, seed=row)
    for step in range(4 * toy.shape.window):
        active = rng.random(4) < 0.7
        if step % 13 == 5:
            row, tokens = int(rng.integers(4)), prompt(toy, rng, 3)
            for pool in pools:
                admit(pool, row, tokens, seed=step)
        said = []
        for pool in pools:
            pool.active[:] = active
            said.append(pool.step().tokens[active].tolist())
        assert said[0] == said[1]
    for name in pools[0].state.current:
        assert pools[0].state.current[name].tobytes() == pools[1].state.current[name].tobytes(), name


def test_a_step_that_fails_has_written_no_ring(toy: ToyLM, rng: np.random.Generator) -> None:
    """A token outside the table stops the engine in the middle of a step: the state is as it was."""
    rows = LMRows(toy.language_model(), 2)
    for row in range(2):
        admit(rows, row, prompt(toy, rng, 30), seed=row)
    kept = {name: array.copy() for name, array in rows.state.current.items()}
    token = int(rows._token[1])
    rows._token[1] = 10**6
    with pytest.raises(EngineError):
        rows.step()
    assert all(rows.state.current[name].tobytes() == kept[name].tobytes() for name in kept)
    rows._token[1] = token
    assert rows.step().failed == ()

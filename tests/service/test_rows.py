"""What the scheduler asks of rows and prompts: narrow steps and prompts fed without a row change no bit."""

from __future__ import annotations

import numpy as np
import pytest

from speechssm.errors import SessionFailed, SettingsError
from speechssm.runtime.lm import LMRows, Prefill
from speechssm.runtime.settings import SamplerSettings
from tests.doubles.lm import ToyLM, same, toy_lm

WARM = SamplerSettings(temperature=2.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyLM:
    return toy_lm(tmp_path_factory.mktemp("toy"))


def words(toy: ToyLM, rng: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in rng.integers(0, toy.shape.vocab, count)]


def test_a_prompt_in_any_pieces_fills_a_row_alike(toy: ToyLM, rng: np.random.Generator) -> None:
    lm = toy.language_model()
    for length in (1, 2, 9, 40, 131):
        tokens = words(toy, rng, length)
        rows = LMRows(lm, 1)
        rows.start(0, tokens[0], WARM, 5)
        rows.prefill(0, tokens[1:])
        prompt = Prefill(lm, tokens, WARM, 5)
        calls = 0
        while prompt.left:
            prompt.step(int(rng.integers(1, 20)))
            calls += 1
        prompt.step()
        saved, expected = prompt.saved(), rows.save(0)
        assert same(saved.state, expected.state)
        assert (saved.token, saved.drawn, saved.seed, saved.sampler) == (expected.token, 0, 5, WARM)
        assert calls >= (length - 1) / 20


def test_a_prompt_that_breaks_the_state_says_so(toy: ToyLM, rng: np.random.Generator) -> None:
    prompt = Prefill(toy.language_model(lru_limit=1e-9), words(toy, rng, 9), WARM, 1)
    with pytest.raises(SessionFailed, match="of the prompt reached"):
        prompt.step()
    with pytest.raises(SettingsError, match="vocabulary"):
        Prefill(toy.language_model(), [toy.shape.vocab], WARM, 1)


def test_steps_of_any_width_say_the_same(toy: ToyLM, rng: np.random.Generator) -> None:
    """Rows come and go at the end of the pool, which steps as wide as it is full; garbage lies behind it."""
    lm, capacity, steps = toy.language_model(), 5, 40
    prompts = [words(toy, rng, int(rng.integers(1, 20))) for _ in range(capacity)]
    expected, saved = [], []
    for seed, tokens in enumerate(prompts):
        alone = LMRows(lm, 1)
        alone.start(0, tokens[0], WARM, seed)
        alone.prefill(0, tokens[1:])
        saved.append(alone.save(0))
        alone.active[0] = True
        expected.append([int(alone.step().tokens[0]) for _ in range(steps)])
    pool, seats = LMRows(lm, capacity), list[int]()
    said: list[list[int]] = [[] for _ in prompts]
    while any(len(s) < steps for s in said):
        wanted = [i for i, s in enumerate(said) if len(s) < steps and rng.random() < 0.7]
        for row, one in enumerate(seats):
            saved[one] = pool.save(row)
            pool.clear(row)
        seats = [int(i) for i in rng.permutation(wanted)]
        for tensor in pool.state.current.values():
            if tensor.dtype.kind == "f":
                tensor[:] = np.nan
        for row, one in enumerate(seats):
            pool.load(row, saved[one])
            pool.active[row] = True
        for _ in range(int(rng.integers(1, 4))):
            if seats and all(len(said[one]) < steps for one in seats):
                result = pool.step(len(seats))
                assert result.failed == ()
                for row, one in enumerate(seats):
                    said[one].append(int(result.tokens[row]))
    assert said == expected


def test_an_active_row_outside_the_step_is_refused(toy: ToyLM) -> None:
    pool = LMRows(toy.language_model(), 3)
    pool.start(2, 1, WARM, 0)
    pool.active[2] = True
    with pytest.raises(AssertionError, match="outside the step"):
        pool.step(2)

"""S4: a number that is none, in one row's state or in one weight, fails that row within a step and touches no other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.bundle import tensors
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import SessionFailed
from speechssm.runtime.acoustic import AcousticSchedule
from speechssm.runtime.lm import LanguageModel, LMRows, StepResult
from speechssm.runtime.model import Model
from speechssm.runtime.session import Session
from speechssm.runtime.settings import SamplerSettings
from tests.doubles.lm import TINY, ToyLM, toy_lm

ROWS = 5
POISON = (np.nan, np.inf, -np.inf)
SETTINGS = [SamplerSettings(), SamplerSettings(0.0), SamplerSettings(1.3, 7), SamplerSettings(0.7, 0, 0.9)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyLM:
    return toy_lm(tmp_path_factory.mktemp("nan"), seed=5)


def pool(lm: LanguageModel, seed: int) -> LMRows:
    """Rows in mid-stream, each with its own history, sampler and seed."""
    rng = np.random.default_rng(seed)
    rows = LMRows(lm, ROWS)
    for row in range(ROWS):
        tokens = rng.integers(0, lm.vocab, int(rng.integers(2, 60))).tolist()
        rows.start(row, tokens[0], SETTINGS[row % len(SETTINGS)], seed + row)
        rows.prefill(row, tokens[1:])
        rows.active[row] = True
    return rows


def copied(result: StepResult) -> StepResult:
    return replace(
        result, tokens=result.tokens.copy(), logprobs=result.logprobs.copy(), health=result.health.copy()
    )


def same_row(a: LMRows, b: LMRows, row: int) -> bool:
    mine, theirs = a.save(row), b.save(row)
    return mine.token == theirs.token and all(
        mine.state[k].tobytes() == theirs.state[k].tobytes() for k in mine.state
    )


# ---- in a state --------------------------------------------------------------------------------------


def floats(lm: LanguageModel) -> list[str]:
    return [s.name for s in lm.schema if s.dtype != "int64"]


def test_in_any_state_tensor_of_a_row(toy: ToyLM, rng: np.random.Generator) -> None:
    lm = toy.language_model()
    assert {s.kind for s in lm.schema if s.name in floats(lm)} == {"lru", "conv", "key", "value"}
    for name, value in itertools.product(floats(lm), POISON):
        seed, bad = int(rng.integers(1 << 30)), int(rng.integers(ROWS))
        clean, hurt = pool(lm, seed), pool(lm, seed)
        array = hurt.state.current[name][bad]
        array.reshape(-1)[int(rng.integers(array.size))] = value
        expected, result = copied(clean.step()), copied(hurt.step())
        assert result.failed == (bad,), f"{value} in {name}"
        assert expected.failed == ()
        assert not np.isfinite(result.health[bad])
        assert "is no longer finite" in hurt.reason(bad)
        hurt.active[bad] = clean.active[bad] = False
        for _ in range(3):
            for row in set(range(ROWS)) - {bad}:
                assert result.tokens[row] == expected.tokens[row]
                assert result.logprobs[row].tobytes() == expected.logprobs[row].tobytes()
                assert result.health[row].tobytes() == expected.health[row].tobytes()
                assert same_row(clean, hurt, row)
            expected, result = copied(clean.step()), copied(hurt.step())
            assert result.failed == ()


def test_the_slot_is_clean_afterwards(toy: ToyLM, rng: np.random.Generator) -> None:
    """Cleared and started again, the row is what it would be in a new pool: both sets of buffers were cleaned."""
    lm = toy.language_model()
    for steps in (1, 2):
        seed, bad = int(rng.integers(1 << 30)), int(rng.integers(ROWS))
        hurt, fresh = pool(lm, seed), LMRows(lm, 1)
        for array in hurt.state.current.values():
            if array.dtype.kind == "f":
                array[bad] = np.nan
        for _ in range(steps):  # the second writes the other set
            hurt.step()
        hurt.clear(bad)
        for tensors_ in hurt.state.sets:
            assert all(not array[bad].any() for array in tensors_.values())
        tokens = rng.integers(0, lm.vocab, 9).tolist()
        for rows, row in ((hurt, bad), (fresh, 0)):
            rows.start(row, tokens[0], SamplerSettings(), 77)
            rows.prefill(row, tokens[1:])
            rows.active[row] = True
        for _ in range(5):
            a, b = hurt.step(), fresh.step()
            assert bad not in a.failed
            assert (a.tokens[bad], a.logprobs[bad].tobytes()) == (b.tokens[0], b.logprobs[0].tobytes())


def test_in_a_row_that_waits(toy: ToyLM, rng: np.random.Generator) -> None:
    """A row that is not active keeps its poison to itself, and fails when it is stepped."""
    lm = toy.language_model()
    seed = int(rng.integers(1 << 30))
    clean, hurt = pool(lm, seed), pool(lm, seed)
    hurt.state.current["L00_lru"][2, 0] = np.nan
    clean.active[2] = hurt.active[2] = False
    for _ in range(3):
        expected, result = copied(clean.step()), copied(hurt.step())
        assert result.failed == ()
        assert np.array_equal(np.delete(result.tokens, 2), np.delete(expected.tokens, 2))
    hurt.active[2] = True
    assert hurt.step().failed == (2,)


# ---- in a weight -------------------------------------------------------------------------------------


class Bent:
    """The step graph of a model on disk, with one weight changed. The file's own check would refuse it."""

    def __init__(self, folder: Path, tied: bool) -> None:
        self.toy = toy_lm(folder, replace_shape(tied), seed=6)
        self.file = folder / "lm.safetensors"
        self.whole = self.file.read_bytes()
        self.entries = {n: e for n, e in tensors.read_header(self.file).items() if e.dtype == "F32"}
        self.step: OrtGraph = self.toy.plain_step

    def lm(self, name: str | None = None, place: int = 0) -> LanguageModel:
        content = bytearray(self.whole)
        if name is not None:
            at = self.entries[name].offset + 4 * place
            content[at : at + 4] = np.float32(np.nan).tobytes()
        # Engines map the file: changed in place it would change under those that are open.
        other = self.file.with_suffix(".new")
        other.write_bytes(content)
        other.replace(self.file)
        graph = OrtGraph(
            "lm_step", self.file.parent / self.step.entry.file, self.step.entry, OrtOptions(threads=1)
        )
        whole = self.toy.language_model()
        return replace(whole, step=graph)


def replace_shape(tied: bool) -> object:
    return TINY.model_copy(update={"tied_head": tied})


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def bent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bent:
    return Bent(tmp_path_factory.mktemp("bent"), request.param)


@pytest.mark.parametrize("count", [20, pytest.param(None, marks=pytest.mark.slow)])
def test_in_any_weight(bent: Bent, rng: np.random.Generator, count: int | None) -> None:
    """Every row either fails in the step that meets the weight, or is bit for bit what it would have been."""
    clean = bent.lm()
    met = 0
    names = rng.permutation(list(bent.entries))[:count].tolist()
    for name in names:
        entry = bent.entries[name]
        seed = int(rng.integers(1 << 30))
        expected_rows = pool(clean, seed)
        hurt = LMRows(bent.lm(name, int(rng.integers(entry.length // 4))), ROWS)
        for row in range(ROWS):
            hurt.load(row, expected_rows.save(row))
            hurt.active[row] = True
        expected, result = copied(expected_rows.step()), copied(hurt.step())
        met += bool(result.failed)
        for row in set(range(ROWS)) - set(result.failed):
            assert result.tokens[row] == expected.tokens[row], name
            assert result.logprobs[row].tobytes() == expected.logprobs[row].tobytes(), name
            assert same_row(expected_rows, hurt, row), name
    # Most weights are met at every step; embeddings and rotary tables only by some rows.
    assert met > 0.5 * len(names)


def test_in_the_embedding_of_one_token(tmp_path: Path, rng: np.random.Generator) -> None:
    """Of an untied model: the row that reads that token fails, and only that row."""
    bent = Bent(tmp_path, tied=False)
    clean = bent.lm()
    seed = int(rng.integers(1 << 30))
    before = pool(clean, seed)
    bad = int(rng.integers(ROWS))
    token = before.save(bad).token
    name = next(n for n in bent.entries if "embed" in n)
    hurt = LMRows(bent.lm(name, token * TINY.width + int(rng.integers(TINY.width))), ROWS)
    for row in range(ROWS):
        hurt.load(row, before.save(row))
        hurt.active[row] = True
    readers = tuple(row for row in range(ROWS) if before.save(row).token == token)
    expected, result = copied(before.step()), copied(hurt.step())
    assert result.failed == readers
    assert bad in readers
    for row in set(range(ROWS)) - set(readers):
        assert result.logprobs[row].tobytes() == expected.logprobs[row].tobytes()


# ---- in a session ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return speechssm.load(tiny_bundle, threads=1)


def opened(model: Model, seed: int) -> Session:
    voice = (0.1 * np.random.default_rng(9).standard_normal(24_000)).astype(np.float32)
    return model.open(voice, rate_hz=16_000, seed=seed, ramp=True, schedule=AcousticSchedule((1,)))


def drain(pieces: object) -> np.ndarray:
    return np.concatenate(list(pieces))  # type: ignore[call-overload]


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("kind", ["lru", "conv", "key", "value"])
def test_a_session_fails_loudly_and_its_neighbour_speaks_on(
    model: Model, value: float, kind: str, rng: np.random.Generator
) -> None:
    expected, fresh = drain(opened(model, 1).stream(9)), drain(opened(model, 3).stream(2))
    neighbour, hurt = opened(model, 1), opened(model, 2)
    mine, theirs = neighbour.stream(9), hurt.stream(9)
    heard = [next(mine)]
    next(theirs)
    name = rng.choice([s.name for s in model.language_model.schema if s.kind == kind])
    array = hurt.lm.state.current[name]
    array.reshape(-1)[int(rng.integers(array.size))] = value
    made = hurt.stats.tokens
    with pytest.raises(SessionFailed, match="is no longer finite"):
        drain(theirs)
    assert hurt.stats.tokens == made, "it says what was made before, and makes nothing more"
    with pytest.raises(SessionFailed, match="is closed"):
        next(hurt.resume())
    with pytest.raises(SessionFailed, match="is closed"):
        hurt.snapshot("nowhere")
    heard += list(mine)
    assert np.concatenate(heard).tobytes() == expected.tobytes()
    hurt.close()
    assert drain(opened(model, 3).stream(2)).tobytes() == fresh.tobytes()


@pytest.mark.parametrize("value", POISON)
def test_a_codec_state_that_is_not_finite(model: Model, value: float, rng: np.random.Generator) -> None:
    """Noise never leaves as audio: the next slice fails."""
    session = opened(model, 4)
    stream = session.stream(30)
    next(stream)
    state = session.output.codec._state
    bad = {name: array.copy() for name, array in state.items()}
    name = rng.choice(list(bad))
    bad[name].reshape(-1)[int(rng.integers(bad[name].size))] = value
    session.output.codec._state = bad
    said = session.stats.samples
    with pytest.raises(SessionFailed, match="not finite"):
        drain(stream)
    assert session.stats.samples == said

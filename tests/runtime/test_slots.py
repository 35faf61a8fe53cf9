"""Slots, by arithmetic: whatever happens to the other rows, each stream draws what it would draw alone.

No engine: the step is an integer function, so that hypothesis can try long random schedules of admit,
step, pause, move, poison and clear. What the engine's own graphs promise is tests/export/test_lm_graphs.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from speechssm.bundle import StateTensor
from speechssm.runtime.lm import PREFETCH, LanguageModel, LMRows, SavedRow
from speechssm.runtime.random import Stage, uniforms
from speechssm.runtime.settings import SamplerSettings

VOCAB, MODULUS = 97, 10_007
SCHEMA = (
    StateTensor(name="L00_lru", kind="lru", shape=(2,)),
    StateTensor(name="position", kind="position", shape=(), dtype="int64"),
)
GARBAGE = -77
"""What a graph may leave in outputs of rows that are not active."""


def advanced(total: int, token: int) -> int:
    return (31 * total + token + 1) % MODULUS


def drawn_from(total: int, uniform: float, top_k: int) -> int:
    return (total * 7 + int(uniform * 1009) + top_k) % VOCAB


class StepGraph:
    """The step's signature on integers; the state is a pair (sum, sum + 1), not finite when poisoned."""

    aliased: frozenset[str] = frozenset()

    def zeros(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype)

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Any:
        return inputs, outputs

    def run(self, bindings: Any) -> None:
        ins, outs = bindings
        for row in range(len(ins["token"])):
            state, position = ins["in_L00_lru"][row], int(ins["in_position"][row])
            if not ins["active"][row]:
                outs["out_L00_lru"][row], outs["out_position"][row] = state, position
                outs["token_out"][row], outs["health"][row], outs["logprob"][row] = GARBAGE, np.nan, np.nan
                continue
            if not np.isfinite(state).all():
                outs["out_L00_lru"][row], outs["health"][row], outs["token_out"][row] = (
                    np.nan,
                    np.nan,
                    GARBAGE,
                )
                continue
            total = advanced(int(state[0]) if position else 0, int(ins["token"][row]))
            outs["out_L00_lru"][row] = (total, total + 1)
            outs["out_position"][row] = position + 1
            outs["health"][row], outs["logprob"][row] = 1.0, -1.0
            outs["token_out"][row] = drawn_from(total, float(ins["uniform"][row]), int(ins["top_k"][row]))


class ChunkGraph:
    """The prefill's signature on the same integers, one row."""

    def call(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        position = int(inputs["in_position"][0])
        total = int(inputs["in_L00_lru"][0, 0]) if position else 0
        for token in inputs["tokens"][0, : inputs["lengths"][0]].tolist():
            total, position = advanced(total, token), position + 1
        found = {
            "health": np.ones(1, np.float32),
            "out_L00_lru": np.array([[total, total + 1]], np.float32),
            "out_position": np.array([position], np.int64),
        }
        return [found[name] for name in outputs]


def language_model() -> LanguageModel:
    step: Any = StepGraph()
    chunk: Any = ChunkGraph()
    return LanguageModel(step, lambda: chunk, SCHEMA, VOCAB, VOCAB, 1e6)


@dataclass
class Alone:
    """One stream with no neighbours, in plain integers."""

    total: int
    position: int
    token: int
    drawn: int
    seed: int
    top_k: int
    active: bool = True
    said: list[int] = field(default_factory=list)

    def step(self) -> None:
        self.total = advanced(self.total, self.token)
        self.position += 1
        uniform = float(uniforms(self.seed, Stage.LM, self.drawn, 1)[0])
        self.token = drawn_from(self.total, uniform, self.top_k)
        self.drawn += 1

    def row(self) -> SavedRow:
        pair = [self.total, self.total + 1] if self.position else [0, 0]
        state = {
            "L00_lru": np.array(pair, np.float32),
            "position": np.array(self.position, np.int64),
        }
        return SavedRow(state, self.token, self.drawn, self.seed, SamplerSettings(1.0, self.top_k))


class Slots(RuleBasedStateMachine):
    """Rows of one pool against as many streams, each alone."""

    @initialize(rows=st.integers(1, 5))
    def begin(self, rows: int) -> None:
        self.lm = language_model()
        self.rows = LMRows(self.lm, rows)
        self.streams: dict[int, Alone] = {}
        self.poisoned: set[int] = set()
        self.empty = set(range(rows))
        """Rows that were cleared, or never used."""

    def pick(self, data: st.DataObject, rows: set[int] | None = None) -> int:
        return data.draw(st.sampled_from(sorted(range(self.rows.rows) if rows is None else rows)))

    def occupy(self, row: int, stream: Alone) -> None:
        self.streams[row] = stream
        self.rows.active[row] = stream.active
        self.poisoned.discard(row)
        self.empty.discard(row)

    @rule(
        data=st.data(),
        prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=200),
        seed=st.integers(0, 2**64 - 1),
        top_k=st.integers(0, VOCAB),
    )
    def admit(self, data: st.DataObject, prompt: list[int], seed: int, top_k: int) -> None:
        row = self.pick(data)
        self.rows.start(row, prompt[0], SamplerSettings(1.0, top_k), seed)
        self.rows.prefill(row, prompt[1:])
        total = 0
        for token in prompt[:-1]:
            total = advanced(total, token)
        self.occupy(row, Alone(total, len(prompt) - 1, prompt[-1], 0, seed, top_k))

    @rule(
        data=st.data(), seed=st.integers(0, 2**64 - 1), token=st.integers(0, VOCAB - 1),
        drawn=st.integers(0, 3 * PREFETCH) | st.integers(-3, 3).map(lambda n: 2 * PREFETCH + n),
    )  # fmt: skip
    def restore(self, data: st.DataObject, seed: int, token: int, drawn: int) -> None:
        """A stream from elsewhere, in the middle of its random numbers."""
        row, stream = self.pick(data), Alone(drawn % MODULUS, drawn + 5, token, drawn, seed, 3)
        self.rows.load(row, stream.row())
        self.occupy(row, stream)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), to_a_new_pool=st.booleans())
    def move(self, data: st.DataObject, to_a_new_pool: bool) -> None:
        """To another row, over whatever is there, or through a pool of its own and back."""
        source, target = self.pick(data, set(self.streams)), self.pick(data)
        saved = self.rows.save(source)
        if to_a_new_pool:
            other = LMRows(self.lm, 2)
            other.load(1, saved)
            saved = other.save(1)
        ill = source in self.poisoned
        stream = self.streams.pop(source)
        self.rows.clear(source)
        self.empty.add(source)
        self.rows.load(target, saved)
        self.occupy(target, stream)
        if ill:
            self.poisoned.add(target)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        row = self.pick(data, set(self.streams))
        self.streams[row].active = not self.streams[row].active
        self.rows.active[row] = self.streams[row].active

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        row = self.pick(data)
        self.rows.clear(row)
        self.streams.pop(row, None)
        self.poisoned.discard(row)
        self.empty.add(row)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), value=st.sampled_from([np.nan, np.inf, -np.inf]), place=st.integers(0, 1))
    def poison(self, data: st.DataObject, value: float, place: int) -> None:
        row = self.pick(data, set(self.streams))
        self.rows.state.current["L00_lru"][row, place] = value
        self.poisoned.add(row)

    @rule(data=st.data(), times=st.integers(1, 4))
    def step(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            active = [row for row, stream in self.streams.items() if stream.active]
            least = max(active, default=0) + 1
            width = data.draw(st.none() | st.integers(least, self.rows.rows))
            result = self.rows.step(width)
            failed = tuple(sorted(set(active) & self.poisoned))
            assert result.failed == failed, "exactly the poisoned rows fail, in the step that meets them"
            for row in failed:  # as its owner must
                assert "no longer finite" in self.rows.reason(row)
                self.rows.clear(row)
                del self.streams[row]
                self.poisoned.discard(row)
                self.empty.add(row)
            for row in set(active) - set(failed):
                self.streams[row].step()
                assert result.tokens[row] == self.streams[row].token
            for row in range(self.rows.rows if width is None else width, self.rows.rows):
                self.streams.pop(row, None)  # whatever they held is lost
                self.poisoned.discard(row)
                self.empty.discard(row)

    @invariant()
    def every_stream_is_what_it_would_be_alone(self) -> None:
        if not hasattr(self, "rows"):
            return
        assert {int(row) for row in np.flatnonzero(self.rows.active)} == {
            row for row, stream in self.streams.items() if stream.active
        }
        for row, stream in self.streams.items():
            saved, wanted = self.rows.save(row), stream.row()
            assert (saved.token, saved.drawn, saved.seed, saved.sampler) == (
                wanted.token, wanted.drawn, wanted.seed, wanted.sampler,
            )  # fmt: skip
            assert int(saved.state["position"]) == stream.position
            if row not in self.poisoned:
                assert saved.state["L00_lru"].tobytes() == wanted.state["L00_lru"].tobytes()

    @invariant()
    def nothing_is_left_in_a_row_that_was_cleared(self) -> None:
        for row in getattr(self, "empty", ()):
            assert not any(array[row].any() for array in self.rows.state.current.values())


Slots.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestSlots = Slots.TestCase

"""Rows of the language model: prefill, step, watchdog, save and load.

Every row is an independent stream. ``step`` runs all rows through one call under a mask; a row that is
not active keeps its state bit for bit, and a row's tokens depend on its own state, seed and settings
only (S3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from speechssm.bundle import StateTensor
from speechssm.engines.protocol import Bindings, Graph
from speechssm.errors import SessionFailed, SettingsError, SnapshotError

from .prefill_memory import Reading
from .random import Stage, uniforms
from .settings import SamplerSettings
from .state import Array, RowState, StateBuffers, fitted

CHUNK_TOKENS = 128
"""Prompt tokens per prefill call: large enough to batch the dense layers, small enough to interleave."""
PREFETCH = 1024
"""Uniform numbers drawn at a time for a row."""


@dataclass(frozen=True)
class LanguageModel:
    """The engine's two graphs and what the manifest says of them. Shared by all sessions.

    ``chunk`` is a function so that the prefill engine opens when it is first needed; ``reading`` is held
    while a prompt is read, after which it may be given back.
    """

    step: Graph
    chunk: Callable[[], Graph]
    schema: tuple[StateTensor, ...]
    vocab: int
    k_max: int
    lru_limit: float
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class SavedRow:
    """Everything one stream needs to go on elsewhere: state, next input token, how many were drawn."""

    state: RowState
    token: int
    drawn: int
    seed: int
    sampler: SamplerSettings


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step. The arrays are views that the next step overwrites.

    ``tokens``, ``logprobs``, ``health`` are (b); only rows that were active mean anything. ``failed``
    lists the active rows whose state is no longer usable; they must not be stepped again.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    health: np.ndarray
    failed: tuple[int, ...]


class LMRows:
    """``rows`` (b) streams of one language model."""

    def __init__(self, lm: LanguageModel, rows: int) -> None:
        self.lm = lm
        self.rows = rows
        zeros = lm.step.zeros
        self.state = StateBuffers(lm.schema, rows, zeros, lm.step.aliased)
        self.active = zeros((rows,), "bool")
        """Mask (b) of the rows the next step advances; the caller sets it."""
        self._token = zeros((rows,), "int64")
        self._temperature = zeros((rows,), "float32")
        self._top_k = zeros((rows,), "int64")
        self._top_p = zeros((rows,), "float32")
        self._uniform = zeros((rows,), "float32")
        self._token_out = zeros((rows,), "int64")
        self._logprob = zeros((rows,), "float32")
        self._health = zeros((rows,), "float32")
        self._temperature[:] = self._top_p[:] = 1
        self._seeds = [0] * rows
        self._samplers = [SamplerSettings()] * rows
        self._drawn = np.zeros(rows, np.int64)
        self._block = np.zeros((rows, PREFETCH), np.float32)
        self._block_of = np.full(rows, -1, np.int64)
        self._row_index = np.arange(rows)
        self._grows = any(s.grows for s in lm.schema)
        self._bindings: dict[tuple[int, int], Bindings] = {}

    @property
    def bindings(self) -> tuple[Bindings, ...]:
        """What has been bound so far, one for each number of rows and parity: what a profile asks how it runs."""
        return tuple(self._bindings.values())

    def _bind(self, width: int, parity: int) -> Bindings:
        """Bindings over the first ``width`` rows; made at its first step, so that later ones look nothing up."""
        if (width, parity) not in self._bindings:
            inputs: dict[str, Array] = {
                "token": self._token,
                "active": self.active,
                "temperature": self._temperature,
                "top_k": self._top_k,
                "top_p": self._top_p,
                "uniform": self._uniform,
                **self.state.inputs(parity),
            }
            outputs: dict[str, Array] = {
                "token_out": self._token_out,
                "logprob": self._logprob,
                "health": self._health,
                **self.state.outputs(parity),
            }
            self._bindings[width, parity] = self.lm.step.bind(
                {name: array[:width] for name, array in inputs.items()},
                {name: array[:width] for name, array in outputs.items()},
            )
        return self._bindings[width, parity]

    # streams

    def start(self, row: int, token: int, sampler: SamplerSettings, seed: int) -> None:
        """Make ``row`` an empty stream whose first input is ``token``.

        Raises SettingsError for a token outside the vocabulary or a sampler the bundle cannot run.
        """
        _check_tokens(self.lm, [token])
        sampler.check_against(self.lm.k_max)
        self.clear(row)
        self._resume(row, token, 0, sampler, seed)

    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """Feed ``tokens`` and leave the row ready to sample what follows the last of them.

        The pending input token goes in first; the last of ``tokens`` becomes the pending one, so that
        sampling always happens in ``lm_step``. Raises SessionFailed when the state stops being finite.
        """
        _check_tokens(self.lm, tokens)
        stream = [int(self._token[row]), *(int(t) for t in tokens)]
        feed, last = stream[:-1], stream[-1]
        if feed:
            self._feed(row, np.asarray(feed, np.int64))
        self._token[row] = last

    def _feed(self, row: int, tokens: np.ndarray) -> None:
        """Run ``tokens`` (t) through the chunk graph on a copy of the row, then put the row back."""
        state = self.state.save(row)
        with self.lm.reading():
            for start in range(0, len(tokens), CHUNK_TOKENS):
                state = feed(self.lm, state, tokens[start : start + CHUNK_TOKENS], row)
        self.state.load(row, state)
        if self._grows:
            self._bindings.clear()

    def clear(self, row: int) -> None:
        """Forget a row: zero state, not active (S4)."""
        self.state.clear(row)
        self.active[row] = False
        self._token[row] = 0
        self._block_of[row] = -1

    def save(self, row: int) -> SavedRow:
        """Copy everything of a row."""
        return SavedRow(
            self.state.save(row),
            int(self._token[row]),
            int(self._drawn[row]),
            self._seeds[row],
            self._samplers[row],
        )

    def load(self, row: int, saved: SavedRow) -> None:
        """Continue a saved row here, whichever row or pool it came from.

        Raises SnapshotError when the state is of another model or its token is outside the vocabulary.
        """
        if not 0 <= saved.token < self.lm.vocab or saved.drawn < 0:
            raise SnapshotError(
                f"the saved token {saved.token} is outside this model's vocabulary of {self.lm.vocab}"
            )
        saved.sampler.check_against(self.lm.k_max)
        self.clear(row)
        self.state.load(row, saved.state)
        if self._grows:
            self._bindings.clear()
        self._resume(row, saved.token, saved.drawn, saved.sampler, saved.seed)

    def _resume(self, row: int, token: int, drawn: int, sampler: SamplerSettings, seed: int) -> None:
        self._token[row], self._drawn[row], self._seeds[row], self._samplers[row] = (
            token,
            drawn,
            seed,
            sampler,
        )
        self._temperature[row], self._top_k[row], self._top_p[row] = (
            sampler.temperature,
            sampler.top_k,
            sampler.top_p,
        )
        self._block_of[row] = -1

    # stepping

    def step(self, width: int | None = None) -> StepResult:
        """Advance every active row by one token. Raises EngineError when the engine itself fails.

        ``width`` runs the first rows only, which costs less: a row costs its share whether it is active or
        not. Rows from ``width`` on must be inactive, and whatever they held is lost.
        """
        width = self.rows if width is None else width
        assert not self.active[width:].any(), "an active row lies outside the step"
        if self._grows:
            self._hold()
        self._draw()
        self.lm.step.run(self._bind(width, self.state.parity))
        self.state.flip()
        np.copyto(self._token, self._token_out, where=self.active)
        self._drawn += self.active
        return StepResult(self._token_out, self._logprob, self._health, self._failed(width))

    def _hold(self) -> None:
        """Room for one more token of every active row, where the model's cache grows."""
        positions = self.state.current["position"][self.active]
        if positions.size and self.state.hold(int(positions.max()) + 1):
            self._bindings.clear()

    def _draw(self) -> None:
        """Put each active row's next uniform number in place; one vectorised gather in the common case."""
        block, column = np.divmod(self._drawn, PREFETCH)
        stale = self.active & (block != self._block_of)
        if stale.any():
            for row in np.flatnonzero(stale):
                self._block[row] = uniforms(self._seeds[row], Stage.LM, int(block[row]) * PREFETCH, PREFETCH)
                self._block_of[row] = block[row]
        self._uniform[:] = self._block[self._row_index, column]

    def _failed(self, width: int) -> tuple[int, ...]:
        # Written so that NaN, which compares false, counts as a failure.
        sound = self._health[:width] <= self.lm.lru_limit
        if sound.all():
            return ()
        return tuple(int(row) for row in np.flatnonzero(self.active[:width] & ~sound))

    def reason(self, row: int) -> str:
        """Why ``row`` failed in the last step, as one sentence."""
        return _reason(self.lm, float(self._health[row]), row)


class Prefill:
    """A prompt on its way to a row: fed chunk by chunk with no row of its own, so that others step in between.

    The chunks' lengths do not matter to the result (S1); ``saved`` goes into any row with ``LMRows.load``.
    Raises SettingsError for a token outside the vocabulary or a sampler the bundle cannot run.
    """

    def __init__(self, lm: LanguageModel, tokens: Sequence[int], sampler: SamplerSettings, seed: int) -> None:
        _check_tokens(lm, tokens)
        sampler.check_against(lm.k_max)
        self._lm = lm
        self._tokens = np.asarray(tokens, np.int64)
        self._sampler = sampler
        self._seed = seed
        self._state: RowState = {s.name: np.zeros(s.shape, s.dtype) for s in lm.schema}
        self._at = 0

    @property
    def left(self) -> int:
        """Tokens still to be fed. The prompt's last token is not fed: it is the first step's input."""
        return len(self._tokens) - 1 - self._at

    def step(self, tokens: int = CHUNK_TOKENS) -> None:
        """Feed at most ``tokens`` more. Raises SessionFailed when the state stops being finite."""
        part = self._tokens[self._at : self._at + min(tokens, self.left)]
        if len(part):
            self._state = feed(self._lm, self._state, part)
            self._at += len(part)

    def saved(self) -> SavedRow:
        """The row once nothing is left."""
        assert self.left == 0, "the prompt is not read to its end"
        return SavedRow(self._state, int(self._tokens[-1]), 0, self._seed, self._sampler)


def feed(lm: LanguageModel, state: RowState, tokens: np.ndarray, row: int | None = None) -> RowState:
    """State of one row after ``tokens`` (t), one call of the chunk graph. ``row`` is named if it fails.

    Raises SessionFailed when the state is no longer finite or passes the limit.
    """
    state = fitted(lm.schema, state, int(state["position"]) + len(tokens))
    inputs: dict[str, Array] = {f"in_{name}": array[None] for name, array in state.items()}
    inputs["tokens"] = np.ascontiguousarray(tokens[None])
    inputs["lengths"] = np.array([len(tokens)], np.int64)
    health, *new = lm.chunk().call(inputs, ["health", *(f"out_{s.name}" for s in lm.schema)])
    if not float(health[0]) <= lm.lru_limit:  # NaN compares false
        raise SessionFailed(_reason(lm, float(health[0]), row))
    return {s.name: array[0] for s, array in zip(lm.schema, new, strict=True)}


def _reason(lm: LanguageModel, health: float, row: int | None) -> str:
    where = "of the prompt" if row is None else f"of slot {row}"
    what = (
        "is no longer finite"
        if not math.isfinite(health)
        else f"reached {health:g}, above the limit {lm.lru_limit:g}"
    )
    return (
        f"the recurrent state {where} {what}: its session ends here and others go on; "
        "restore it from a snapshot, or check the bundle with 'speechssm verify'"
    )


def _check_tokens(lm: LanguageModel, tokens: Iterable[int]) -> None:
    for token in tokens:
        if not 0 <= token < lm.vocab:
            raise SettingsError(f"token {token} is outside this model's vocabulary of {lm.vocab}")

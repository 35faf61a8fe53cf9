"""Language models for tests: any shape, on ONNX Runtime CPU, and a plain functional way to run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.export.graphs.lm import build_lm_chunk, build_lm_step
from speechssm.export.graphs.lm_weights import lm_weights
from speechssm.export.models.griffin import Griffin, lm_state
from speechssm.export.package import write_graph, write_parts
from speechssm.export.storage import STORED, Storage, stored_weights
from speechssm.runtime.lm import LanguageModel

State = dict[str, np.ndarray]

TINY = LMShape(
    vocab=64, width=32, lru_width=40, heads=4, kv_heads=2, head_dim=8, window=16, mlp_width=72,
    blocks=("recurrent", "recurrent", "attention", "recurrent", "recurrent"),
)  # fmt: skip
"""The preset's language model."""


def shaken(shape: LMShape, seed: int) -> Griffin:
    """A reference model whose biases and norms are not at their initial zero."""
    torch.manual_seed(seed)
    model = Griffin(shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not name.endswith("decay"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@dataclass
class ToyLM:
    """Both graphs of one model, with logits, run on fresh buffers."""

    model: Griffin
    step_graph: OrtGraph
    chunk_graph: OrtGraph
    shape: LMShape = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.model.shape

    def zeros(self, rows: int) -> State:
        return {s.name: np.zeros((rows, *s.shape), s.dtype) for s in lm_state(self.shape)}

    def step(
        self, token: np.ndarray, state: State, active: np.ndarray | None = None, **sampler: object
    ) -> tuple[dict[str, np.ndarray], State]:
        rows = len(token)
        inputs = {
            "token": np.asarray(token, np.int64),
            "active": np.ones(rows, bool) if active is None else active,
            "temperature": _per_row(rows, sampler.get("temperature", 1.0), np.float32),
            "top_k": _per_row(rows, sampler.get("top_k", 0), np.int64),
            "top_p": _per_row(rows, sampler.get("top_p", 1.0), np.float32),
            "uniform": _per_row(rows, sampler.get("uniform", 0.5), np.float32),
            **{f"in_{k}": v for k, v in state.items()},
        }
        heads = ["token_out", "logprob", "health", "logits"]
        out = self.step_graph.call(inputs, [*heads, *(f"out_{k}" for k in state)])
        return dict(zip(heads, out, strict=False)), dict(zip(state, out[len(heads) :], strict=True))

    def chunk(
        self, tokens: np.ndarray, lengths: np.ndarray | list[int], state: State
    ) -> tuple[np.ndarray, State]:
        inputs = {
            "tokens": np.ascontiguousarray(tokens, np.int64),
            "lengths": np.asarray(lengths, np.int64),
            **{f"in_{k}": v for k, v in state.items()},
        }
        health, *new = self.chunk_graph.call(inputs, ["health", *(f"out_{k}" for k in state)])
        return health, dict(zip(state, new, strict=True))

    def stepwise(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """tokens (b,t) one by one -> logits (b,t,v) and the state."""
        logits = []
        for t in range(tokens.shape[1]):
            out, state = self.step(tokens[:, t], state)
            logits.append(out["logits"])
        return np.stack(logits, 1), state

    def language_model(self, lru_limit: float = 1e6) -> LanguageModel:
        """As the runtime sees it. The debug output is not bound, so the step graph needs its own file."""
        chunk: Callable[[], OrtGraph] = lambda: self.chunk_graph  # noqa: E731
        return LanguageModel(
            self.plain_step, chunk, lm_state(self.shape), self.shape.vocab, self.shape.vocab, lru_limit
        )

    plain_step: OrtGraph = None  # type: ignore[assignment]


def _per_row(rows: int, value: object, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), (rows,)))


def toy_lm(
    folder: Path,
    shape: LMShape = TINY,
    seed: int = 0,
    *,
    threads: int = 1,
    ring_op: bool = False,
    linear_op: bool = False,
    storage: Storage = "float32",
    library: Path | None = None,
) -> ToyLM:
    """Export a shaken model of ``shape`` into ``folder`` and load its graphs, with native operators or without."""
    folder.mkdir(parents=True, exist_ok=True)
    model = shaken(shape, seed)
    stored, ops = STORED[storage], {"ring_op": ring_op, "linear_op": linear_op}
    builders = {
        "lm_debug": build_lm_step(shape, stored, logits=True, **ops),
        "lm_step": build_lm_step(shape, stored, **ops),
        "lm_chunk": build_lm_chunk(shape, stored, **ops),
    }
    weights = stored_weights(shape, lm_weights(model), storage, linear_op=linear_op)
    write_parts(folder, builders, {"lm": weights})
    graphs = {}
    options = OrtOptions(threads=threads, custom_ops=library)
    for name, builder in builders.items():
        entry = write_graph(folder, name, builder, lm_state(shape))
        graphs[name] = OrtGraph(name, folder / entry.file, entry, options)
    toy = ToyLM(model, graphs["lm_debug"], graphs["lm_chunk"])
    toy.plain_step = graphs["lm_step"]
    return toy


def same(a: State, b: State) -> bool:
    """Bit for bit, NaN included."""
    return all(a[k].tobytes() == b[k].tobytes() for k in a) and a.keys() == b.keys()


def rows_of(state: State, rows: slice | list[int]) -> State:
    return {k: np.ascontiguousarray(v[rows]) for k, v in state.items()}

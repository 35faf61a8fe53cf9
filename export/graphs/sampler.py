"""The sampler as graph nodes: one token per row from logits, settings and one uniform number.

Inside the graph so that no logits leave the device. Per row: ``temperature`` 0 is argmax; top_k 0
with top_p 1 is the inverse CDF over the unsorted vocabulary; otherwise the k_max likeliest tokens are
sorted, cut to top_k, then to the smallest prefix whose probability (renormalised over those top_k)
reaches top_p, and the inverse CDF runs over what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .builder import BOOL, FLOAT, INT64, GraphBuilder
from .exact import row_log, row_sum

K_MAX = 1024
"""Most candidates that are sorted. TensorRT's TopK takes 3 840; a full sort of 32 768 costs 186 ms at 64 rows."""


@dataclass(frozen=True)
class SamplerInputs:
    """Names of the per-row settings (b)."""

    temperature: str
    top_k: str
    top_p: str
    uniform: str


def sampler_inputs(g: GraphBuilder) -> SamplerInputs:
    """Declare the sampler's inputs."""
    return SamplerInputs(
        g.input("temperature", FLOAT, ("b",)),
        g.input("top_k", INT64, ("b",)),
        g.input("top_p", FLOAT, ("b",)),
        g.input("uniform", FLOAT, ("b",)),
    )


def sample(g: GraphBuilder, logits: str, vocab: int, given: SamplerInputs) -> tuple[str, str, str]:
    """logits (b,v) -> token (b) int64, its log-probability (b), and a finite check (b): 0 or NaN.

    The log-probability is of the full distribution at the row's temperature (at 1 for temperature 0).
    """
    with g.scope("sampler"):
        return _sample(g, logits, vocab, given)


def _sample(g: GraphBuilder, logits: str, vocab: int, given: SamplerInputs) -> tuple[str, str, str]:
    zero, one = g.const(np.float32(0)), g.const(np.float32(1))
    column = g.const([1])
    greedy = g.op("Not", g.op("Greater", given.temperature, zero))
    temperature = g.op("Unsqueeze", g.op("Where", greedy, one, given.temperature), column)
    scaled = g.op("Div", logits, temperature)
    shifted = g.op("Sub", scaled, g.op("ReduceMax", scaled, column, keepdims=1))
    weight = g.op("Exp", shifted)
    total = row_sum(g, weight, vocab)
    uniform = g.op("Unsqueeze", given.uniform, column)

    whole = _inverse_cdf(g, weight, uniform, g.const(np.int64(vocab - 1)))

    k_max = min(vocab, K_MAX)
    top, index = g.ops("TopK", weight, g.const([k_max]), outputs=2, axis=-1, largest=1, sorted=1)
    rank = g.const(np.arange(k_max, dtype=np.int64)[None])
    top_k = g.op("Unsqueeze", given.top_k, column)
    asked = g.op("Where", g.op("Greater", top_k, g.const(np.int64(0))), top_k, g.const(np.int64(k_max)))
    kept = g.op("Where", g.op("Less", rank, asked), top, zero)
    before = g.op("CumSum", kept, g.const(np.int64(1)), exclusive=1)
    mass = g.op("Mul", row_sum(g, kept, k_max), g.op("Unsqueeze", given.top_p, column))
    # The likeliest token stays whatever top_p is: nothing lies before it.
    nucleus = g.op("Or", g.op("Less", before, mass), g.op("Equal", rank, g.const(np.int64(0))))
    kept = g.op("Where", nucleus, kept, zero)
    counted = g.op("Cast", g.op("Greater", kept, zero), to=INT64)
    last = g.op("Sub", g.op("ReduceSum", counted, column, keepdims=0), g.const(np.int64(1)))
    last = g.op("Max", last, g.const(np.int64(0)))
    chosen = _inverse_cdf(g, kept, uniform, last)
    cut = g.op("Squeeze", g.op("GatherElements", index, g.op("Unsqueeze", chosen, column), axis=1), column)

    plain = g.op(
        "And", g.op("Equal", given.top_k, g.const(np.int64(0))), g.op("GreaterOrEqual", given.top_p, one)
    )
    token = g.op("Where", plain, whole, cut)
    best = g.op("ArgMax", logits, axis=1, keepdims=0)
    token = g.op("Where", greedy, best, token)

    chosen_shifted = g.op("GatherElements", shifted, g.op("Unsqueeze", token, column), axis=1)
    logprob = g.op("Squeeze", g.op("Sub", chosen_shifted, row_log(g, total)), column)
    finite = g.op("Squeeze", g.op("Mul", total, zero), column)
    return token, logprob, finite


def _inverse_cdf(g: GraphBuilder, weight: str, uniform: str, last: str) -> str:
    """First entry whose cumulative weight passes uniform x total, at most ``last``. weight (b,s) -> (b)."""
    cumulative = g.op("CumSum", weight, g.const(np.int64(1)))
    target = g.op("Mul", uniform, g.op("ReduceMax", cumulative, g.const([1]), keepdims=1))
    passed = g.op("Cast", g.op("LessOrEqual", cumulative, target), to=INT64)
    return g.op("Min", g.op("ReduceSum", passed, g.const([1]), keepdims=0), last)


__all__ = ["BOOL", "K_MAX", "SamplerInputs", "sample", "sampler_inputs"]

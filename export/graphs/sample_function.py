"""The sampler as an operator of the domain ``speechssm``, with a body of standard operators.

    SampleToken(logits (b,v), temperature (b), top_k (b), top_p (b), uniform (b)) -> token (b), logprob (b), finite (b)

The body is the plain graph's nodes (:mod:`.sampler`). They sort the likeliest tokens of every row, since a graph has no
way not to, and cumulate the whole vocabulary; the kernel (cpp_ext/include/speechssm/sample_api.h) does either
where a row asks for it. Sums are rounded in another order, so a uniform number within about 1e-6 of the border between
two tokens may give the other one.
"""

from __future__ import annotations

from functools import partial

from onnx import FunctionProto

from .builder import FLOAT, INT64, GraphBuilder
from .rglru_function import DOMAIN, declare
from .sampler import K_MAX, SamplerInputs, sample

SAMPLE = "SampleToken"


def sample_token(g: GraphBuilder, logits: str, vocab: int, given: SamplerInputs) -> tuple[str, str, str]:
    """As :func:`.sampler.sample`, as one node."""
    declare(g, SAMPLE, partial(_function, vocab))
    settings = (given.temperature, given.top_k, given.top_p, given.uniform)
    token, logprob, finite = g.ops(
        SAMPLE, logits, *settings, outputs=3, domain=DOMAIN, k_max=min(K_MAX, vocab)
    )
    return token, logprob, finite


def _function(vocab: int) -> FunctionProto:
    g = GraphBuilder(SAMPLE)
    logits = g.input("logits", FLOAT, ())
    given = SamplerInputs(
        g.input("temperature", FLOAT, ()),
        g.input("top_k", INT64, ()),
        g.input("top_p", FLOAT, ()),
        g.input("uniform", FLOAT, ()),
    )
    token, logprob, finite = sample(g, logits, vocab, given)
    g.output("token", token, INT64, ())
    g.output("logprob", logprob, FLOAT, ())
    g.output("finite", finite, FLOAT, ())
    return g.function(DOMAIN, ["k_max"])

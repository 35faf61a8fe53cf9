"""``speechssm bench peers``: other people's samplers, tokens a second of one session, in turns with ours.

Hugging Face ``RecurrentGemma.generate`` (eager and compiled), Google DeepMind's PyTorch sampler, and the
exported Transformers. Each generates ``TOKENS`` at a time from a fresh short prompt, as their interfaces
have it, so every figure includes what a caller of that interface pays. A peer that is not installed, or
does not run, is null with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from speechssm.bundle.shapes import LMShape

from .bench.result import Cell, Figure, Plot, Section, Series, Table, measured, missing
from .bench.run import Bench
from .bench.timing import Spread, in_turns
from .contest import models_of
from .lm import Contestant, contestant

TOKENS, PROMPT = 64, 8
"""Tokens of one turn, and of the prompt in front of them: below every window, where all agree."""


TURN_S, QUICK_TURN_S = 20.0, 3.0
"""Seconds of all turns together."""


class Absent(Exception):
    """Why a peer takes no part."""


def run(bench: Bench) -> Section:
    """Everybody who is here, in turns."""
    started = time.perf_counter()
    settings = bench.settings
    models = [
        contestant(name, shape, bench.work / f"peer-{name}", options=bench.options)
        for name, shape in models_of(settings.shape).items()
    ]
    griffin = models[0]
    jobs: dict[str, Callable[[], object]] = {f"speechssm, {one.name}": ours(one) for one in models}
    absent: dict[str, str] = {}
    for name, make in _others(quick=settings.quick):
        bench.say(f"peer: {name} ...")
        try:
            job = make(griffin.shape, settings.threads)
            job()
            jobs[name] = job
        except Absent as why:
            absent[name] = str(why)
        except Exception as error:  # somebody else's code may fail in any way; the report says how
            first = str(error).strip().splitlines()[:1]
            absent[name] = f"it failed: {type(error).__name__}: {' '.join(first)}"
    found = in_turns(jobs, QUICK_TURN_S if settings.quick else TURN_S, at_least=3, clock=settings.clock)
    return Section(
        name="peers",
        title="Peers: other samplers of the same shape",
        about=(
            f"{TOKENS} tokens behind a prompt of {PROMPT}, in turns, A B B A, by everybody's own interface; "
            f"{griffin.shape.parameters / 1e6:.1f} M parameters, float32, random weights of their own. The exported "
            f"Transformers stand beside them at the same short length. {bench.clock_words}"
        ),
        seconds=time.perf_counter() - started,
        figures=tuple(_figures(griffin, found, absent)),
        tables=(_table(found, absent),),
        plots=(_plot(found),),
    )


def ours(model: Contestant) -> Callable[[], object]:
    """``TOKENS`` steps of one session behind a short prompt."""
    held = model.rows_at(1, PROMPT)

    def run() -> None:
        for _ in range(TOKENS):
            held.step()

    return run


def _others(*, quick: bool) -> Iterable[tuple[str, Callable[[LMShape, int], Callable[[], object]]]]:
    def compiled(shape: LMShape, threads: int) -> Callable[[], object]:
        if quick:
            raise Absent("compiling takes minutes: left out of a quick run")
        return huggingface(shape, threads, compiled=True)

    yield "Hugging Face, eager", lambda shape, threads: huggingface(shape, threads)
    yield "Hugging Face, compiled", compiled
    yield "Google DeepMind, PyTorch", deepmind


def huggingface(shape: LMShape, threads: int, *, compiled: bool = False) -> Callable[[], object]:
    """``RecurrentGemmaForCausalLM.generate`` of the same shape with random weights."""
    if importlib.util.find_spec("transformers") is None:
        raise Absent("transformers is not installed: pip install transformers")
    import torch

    transformers: Any = importlib.import_module("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if shape.width != shape.heads * shape.head_dim or shape.activation != "gelu_tanh":
        raise Absent("its heads have the width of the model divided by their number; this shape's do not")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        num_hidden_layers=shape.layers, vocab_size=shape.vocab, hidden_size=shape.width,
        intermediate_size=2 * shape.mlp_width, num_attention_heads=shape.heads, lru_width=shape.lru_width,
        num_key_value_heads=shape.kv_heads, attention_window_size=shape.window,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model: Any = transformers.RecurrentGemmaForCausalLM(config).eval()
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=False)
    prompt = torch.arange(PROMPT)[None]

    def run() -> None:
        with torch.inference_mode():
            made = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, top_k=0,
                max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            )  # fmt: skip
        assert made.shape[1] == PROMPT + TOKENS

    return run


def deepmind(shape: LMShape, threads: int) -> Callable[[], object]:
    """``recurrentgemma.torch.sampler.Sampler`` of the same shape with random weights."""
    for package in ("recurrentgemma", "einops", "jaxtyping", "sentencepiece"):
        if importlib.util.find_spec(package) is None:
            raise Absent(
                f"{package} is not installed: pip install --no-deps recurrentgemma einops jaxtyping sentencepiece"
            )
    if shape.kv_heads != 1 or shape.rope != "half" or shape.width != shape.heads * shape.head_dim:
        raise Absent("it has one key/value head, rotary halves and square heads; this shape has not")
    if "jax" not in sys.modules and "recurrentgemma" not in sys.modules:
        # Only the PyTorch half is wanted; the package's own __init__ imports JAX.
        package_spec = importlib.util.find_spec("recurrentgemma")
        assert package_spec is not None
        module = types.ModuleType("recurrentgemma")
        module.__path__ = list(package_spec.submodule_search_locations or ())
        sys.modules["recurrentgemma"] = module
    import torch

    common: Any = importlib.import_module("recurrentgemma.common")
    griffin: Any = importlib.import_module("recurrentgemma.torch.griffin")
    sampler: Any = importlib.import_module("recurrentgemma.torch.sampler")
    if threads:
        torch.set_num_threads(threads)
    kinds = {"recurrent": common.TemporalBlockType.RECURRENT, "attention": common.TemporalBlockType.ATTENTION}
    config = common.GriffinConfig(
        vocab_size=shape.vocab, width=shape.width, mlp_expanded_width=shape.mlp_width, num_heads=shape.heads,
        block_types=tuple(kinds[block] for block in shape.blocks), embeddings_scale_by_sqrt_dim=shape.scale_embedding,
        attention_window_size=shape.window, logits_soft_cap=shape.soft_cap or 0.0, lru_width=shape.lru_width,
    )  # fmt: skip
    torch.manual_seed(0)
    model = griffin.Griffin(config, dtype=torch.float32).eval()
    sample = sampler.Sampler(model, _Numbers(), greedy_sampling=False)

    def run() -> None:
        made = sample([""], total_generation_steps=TOKENS, end_sampling_at_eos_token=False)
        assert len(made.tokens[0]) == TOKENS

    return run


class _Numbers:
    """Stands for a text tokenizer: these models speak in token numbers."""

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return 0

    def bos_id(self) -> int:
        return 0

    def EncodeAsIds(self, text: str) -> list[int]:
        return list(range(1, PROMPT))

    def DecodeIds(self, ids: Sequence[int]) -> str:
        return ""


def _figures(griffin: Contestant, found: dict[str, Spread], absent: dict[str, str]) -> Iterable[Figure]:
    mine = found[f"speechssm, {griffin.name}"].median
    for name, spread in found.items():
        yield measured(f"tokens a second: {name}", TOKENS / spread.median, "/s")
        if not name.startswith("speechssm"):
            yield measured(f"speed over {name}", spread.median / mine, "x")
    for name, reason in absent.items():
        yield missing(f"tokens a second: {name}", "/s", reason)
        yield missing(f"speed over {name}", "x", reason)


def _table(found: dict[str, Spread], absent: dict[str, str]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, TOKENS / s.median, TOKENS / s.high, TOKENS / s.low, s.count, "") for name, s in found.items()
    ]
    rows += [(name, None, None, None, 0, reason) for name, reason in absent.items()]
    return Table(
        name="peers", title=f"Peers: {TOKENS} tokens of one session in turns", rows=tuple(rows),
        columns=("who", "tokens a second", "p10", "p90", "turns", "reason"),
        note="Griffin of one shape with random weights of their own, float32, the same number of threads.",
    )  # fmt: skip


def _plot(found: dict[str, Spread]) -> Plot:
    return Plot(
        name="peers", title="Peers: tokens a second of one session", x_label="", y_label="tokens/s", kind="bars",
        series=(
            Series(
                name="tokens a second", x=tuple(n.replace(", ", "\n") for n in found),
                y=tuple(TOKENS / s.median for s in found.values()),
            ),
        ),
    )  # fmt: skip

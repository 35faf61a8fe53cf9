"""``speechssm bench lm``: the paper's Figures 7 and 8 on this machine, each ratio beside its ceiling.

Figure 7 is one session's decoding time against length; Figure 8 the ratio of throughputs when a memory
budget is filled with sessions of a length. What decides both is how much a step has to read, so every row
says how many key/value heads there are, what is cached, and in which precision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from speechssm.axes import TOKEN_RATE_HZ

from .bench.result import Cell, Figure, Plot, Section, Series, Table, measured, missing
from .bench.run import Bench
from .contest import models_of
from .lm import Timed, contestant, held_bytes, measure, row_of, rows_in_budget

POSITIONS = (128, 512, 1024, 2048, 4096, 8192, 16_384, 24_000)
"""Tokens said before the step that is timed, one session; 24 000 are 16 minutes."""
LENGTHS = (128, 512, 2048, 8192, 16_384)
"""Lengths of the sessions that fill the budget."""
QUICK = (128, 1024, 4096)
TURN_S, QUICK_TURN_S = 3.0, 0.6
"""Seconds that the models step in turns, at each position."""
QUICK_BUDGET = 64 << 20
SHARE, RATIO_OFF = 0.70, 0.1
"""What is to be reached: share of a model's own limit, and how far the measured ratio may be off the computed one,
to either side: a ratio above its ceiling means that the Transformer was slow, not that Griffin was fast."""

Row = dict[str, Any]


def run(bench: Bench) -> Section:
    """Measure and report."""
    settings = bench.settings
    models = [
        contestant(name, shape, bench.work / name, dtype=settings.dtype, options=bench.options)  # type: ignore[arg-type]
        for name, shape in models_of(settings.shape).items()
    ]
    return compared(bench, models, "All are exported by the same code and run by the same runtime")


def compared(bench: Bench, models: Sequence[Timed], how: str, turn_s: float = TURN_S) -> Section:
    """Griffin, the first of ``models``, beside the others; ``how`` they run, in words, ``turn_s`` at each position."""
    started = time.perf_counter()
    settings = bench.settings
    quick = settings.quick
    budget = min(settings.budget_bytes, QUICK_BUDGET) if quick else settings.budget_bytes
    turn = QUICK_TURN_S if quick else turn_s
    one = list(figure_7(bench, models, QUICK if quick else POSITIONS, turn))
    filled = list(figure_8(bench, models, QUICK if quick else LENGTHS, budget, turn))
    ratios = list(compare(bench, models, filled))
    griffin = models[0].shape
    return Section(
        name="lm",
        title="Language model: Griffin and Transformers",
        about=(
            f"{griffin.parameters / 1e6:.1f} M parameters, {griffin.layers} layers, width {griffin.width}, window "
            f"{griffin.window}, {griffin.vocab} tokens, {models[0].dtype} weights, "
            f"{models[0].ring_item_bytes * 8}-bit keys and values, random weights. The Transformers have the same "
            f"width, depth and MLP, and keep every key. {how}, in turns (A B B A); a time is the median of its steps. "
            "A floor is what a step must read and multiply, at the rates measured in this run. "
            f"A budget of {budget / 2**20:.0f} MiB holds state alone, not weights. {bench.clock_words}"
        ),
        seconds=time.perf_counter() - started,
        figures=tuple(_figures(one, filled, ratios)),
        tables=(
            _table("figure-7", "One session (the paper's Figure 7)", one, [
                "model", "kv_heads", "cache", "precision", "position", "steps", "step_s", "step_s_p10", "step_s_p90",
                "floor_s", "bound_by", "share_of_floor", "decode_s",
            ], "decode_s: seconds to say everything up to that position, from the steps measured so far."),
            _table("figure-8", "Budget filled with sessions (the paper's Figure 8)", filled, [
                "model", "kv_heads", "cache", "precision", "length", "position", "rows", "steps", "step_s",
                "step_s_p10", "step_s_p90", "tokens_per_s", "floor_s", "bound_by", "share_of_floor",
            ], "Rows are as many sessions of that length as the budget holds; steps are timed at the end of the "
               "length and at its middle, where an average step of the whole decoding is."),
            _table("ratios", "Throughput of Griffin over the Transformer's, and the computed ceiling", ratios, [
                "model", "kv_heads", "length", "at", "griffin_rows", "rows", "ratio", "ceiling", "ratio_over_ceiling",
            ], "One key/value head (MQA) is the efficient baseline; a Transformer with all heads (MHA) reads as "
               "many times more as it has heads. The paper's ratio of 120 is of the second kind."),
        ),
        plots=(
            _over_position(one), _decode_time(one), _ratio(ratios), _memory(models),
        ),
        facts={
            "budget_bytes": budget,
            "held_bytes": {m.name: held_bytes(m.shape, 16_384, m.ring_item_bytes) for m in models},
        },
    )  # fmt: skip


def figure_7(
    bench: Bench, models: Sequence[Timed], positions: Iterable[int], seconds: float
) -> Iterable[Row]:
    """One session each: step time at every position, and the time to decode up to there."""
    last: dict[str, tuple[int, float, float]] = {}
    for position in positions:
        bench.say(f"one session at token {position} ...")
        found = measure(
            models, position, [1] * len(models), seconds=seconds, at_least=5, clock=bench.settings.clock
        )
        for model in models:
            now = found[model.name].median
            # Before the first position a step is taken to cost what it does there; a line joins the others.
            at, step, total = last.get(model.name, (0, now, 0.0))
            total += (position - at) * (step + now) / 2
            last[model.name] = position, now, total
            yield row_of(model, found[model.name], bench.machine, 1, position, decode_s=total)


def figure_8(
    bench: Bench, models: Sequence[Timed], lengths: Iterable[int], budget: int, seconds: float
) -> Iterable[Row]:
    """The budget filled: step time at the end and in the middle of every length."""
    for length in lengths:
        rows = [rows_in_budget(model.shape, length, budget, model.ring_item_bytes) for model in models]
        for at, position in (("end", length), ("middle", length // 2)):
            bench.say(f"{rows} sessions of {length} tokens, {at} ...")
            found = measure(models, position, rows, seconds=seconds, clock=bench.settings.clock)
            for model, count in zip(models, rows, strict=True):
                yield row_of(model, found[model.name], bench.machine, count, position, length=length, at=at)


def compare(bench: Bench, models: Sequence[Timed], filled: Sequence[Row]) -> Iterable[Row]:
    """Griffin's throughput over each Transformer's, measured and computed."""
    griffin = models[0].name
    by = {(row["model"], row["length"], row["at"]): row for row in filled}
    for row in filled:
        if row["model"] == griffin:
            continue
        mine = by[griffin, row["length"], row["at"]]
        ratio = mine["tokens_per_s"] / row["tokens_per_s"]
        ceiling = mine["rows"] / mine["floor_s"] / (row["rows"] / row["floor_s"])
        yield {
            "model": row["model"], "kv_heads": row["kv_heads"], "length": row["length"], "at": row["at"],
            "griffin_rows": mine["rows"], "rows": row["rows"], "ratio": ratio, "ceiling": ceiling,
            "ratio_over_ceiling": ratio / ceiling,
        }  # fmt: skip


def break_even(lengths: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The length at which the ratio crosses one, on a line between logarithms; None where it never does.

    A ratio above one throughout means the Transformer wins nowhere that was measured.
    """
    for (a, low), (b, high) in zip(
        zip(lengths, ratios, strict=True), list(zip(lengths, ratios, strict=True))[1:], strict=False
    ):
        if low < 1 <= high:
            share = math.log(1 / low) / math.log(high / low)
            return float(math.exp(math.log(a) + share * math.log(b / a)))
    return None


def _figures(one: list[Row], filled: list[Row], ratios: list[Row]) -> Iterable[Figure]:
    longest = max(row["length"] for row in ratios)
    for model in dict.fromkeys(row["model"] for row in filled):
        for what, rows in (("one session", one), ("budget filled", filled)):
            shares = [row["share_of_floor"] for row in rows if row["model"] == model]
            yield measured(f"{model}, {what}: least share of its own limit", min(shares), "", least=SHARE)
    for model in dict.fromkeys(row["model"] for row in ratios):
        mine = [row for row in ratios if row["model"] == model and row["at"] == "end"]
        last = next(row for row in mine if row["length"] == longest)
        yield measured(f"throughput over {model} at {longest}", last["ratio"], "x")
        yield measured(f"ceiling of that ratio, {model}", last["ceiling"], "x")
        for row in mine:
            off = abs(row["ratio_over_ceiling"] - 1)
            yield measured(f"ratio off its ceiling, {model} at {row['length']}", off, "", most=RATIO_OFF)
        found = break_even([row["length"] for row in mine], [row["ratio"] for row in mine])
        name = f"{model} wins below"
        if found is None:
            every = "every" if mine[0]["ratio"] >= 1 else "no"
            yield missing(name, "tokens", f"Griffin is ahead at {every} length measured")
        else:
            yield measured(name, found, "tokens")
    for model in dict.fromkeys(row["model"] for row in one if row["model"] != "griffin"):
        steps = {row["position"]: row["step_s"] for row in one if row["model"] == model}
        mine_at = {row["position"]: row["step_s"] for row in one if row["model"] == "griffin"}
        found = break_even(list(steps), [steps[p] / mine_at[p] for p in steps])
        name = f"{model} wins below, one session"
        if found is None:
            every = "every" if steps[min(steps)] >= mine_at[min(steps)] else "no"
            yield missing(name, "tokens", f"Griffin's step is shorter at {every} position measured")
        else:
            yield measured(name, found, "tokens")


def _table(name: str, title: str, rows: Sequence[Row], columns: Sequence[str], note: str) -> Table:
    cells: tuple[tuple[Cell, ...], ...] = tuple(tuple(row[c] for c in columns) for row in rows)
    return Table(name=name, title=title, columns=tuple(columns), rows=cells, note=note)


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def _over_position(one: Sequence[Row]) -> Plot:
    series = []
    for model, rows in _by_model(one).items():
        x = tuple(float(row["position"]) for row in rows)
        middle, low, high, floor = (
            tuple(1e3 * row[key] for row in rows) for key in ("step_s", "step_s_p10", "step_s_p90", "floor_s")
        )
        series.append(Series(name=model, x=x, y=middle, low=low, high=high))
        series.append(Series(name=f"{model}, floor", x=x, y=floor, style="computed"))
    return Plot(
        name="time-per-token", title="Time per token over position, one session", x_label="tokens said before",
        y_label="ms a token", series=tuple(series), log_x=True, log_y=True,
    )  # fmt: skip


def _decode_time(one: Sequence[Row]) -> Plot:
    series = tuple(
        Series(
            name=model,
            x=tuple(float(row["position"]) for row in rows),
            y=tuple(row["decode_s"] for row in rows),
        )
        for model, rows in _by_model(one).items()
    )
    return Plot(
        name="decode-time", title="Decoding time against length, one session (Figure 7)", x_label="tokens",
        y_label="s", series=series, log_x=True, log_y=True,
    )  # fmt: skip


def _ratio(ratios: Sequence[Row]) -> Plot:
    series = []
    for model, rows in _by_model([row for row in ratios if row["at"] == "end"]).items():
        x = tuple(float(row["length"]) for row in rows)
        series.append(Series(name=model, x=x, y=tuple(row["ratio"] for row in rows)))
        series.append(
            Series(name=f"{model}, ceiling", x=x, y=tuple(row["ceiling"] for row in rows), style="computed")
        )
    return Plot(
        name="throughput-ratio", title="Griffin's throughput over the Transformer's, budget filled (Figure 8)",
        x_label="tokens of each session", y_label="ratio", series=tuple(series), log_x=True, log_y=True,
    )  # fmt: skip


def _memory(models: Sequence[Timed]) -> Plot:
    minutes = tuple(float(m) for m in range(1, 17))
    series = tuple(
        Series(
            name=model.name,
            x=minutes,
            y=tuple(
                held_bytes(model.shape, round(m * 60 * TOKEN_RATE_HZ), model.ring_item_bytes) / 2**20
                for m in minutes
            ),
            style="computed",
        )
        for model in models
    )
    return Plot(
        name="state-over-minutes", title="State of one session over 16 minutes", x_label="minutes of speech",
        y_label="MiB", series=series, log_y=True,
    )  # fmt: skip

"""The parity report as one HTML page with its plots drawn inline: no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

Report = dict[str, Any]

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 300, 64, 34
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; }
.bad { color: #d33; } .good { color: #2a2; }
svg { max-width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; }
"""


def page(name: str, report: Report) -> str:
    """The whole page for the report of bundle ``name``."""
    run = report["rollout"]
    free = run["free_running"]
    verdict = (
        '<p class="good">Every gate was passed.</p>'
        if report["passed"]
        else '<p class="bad">Refused:</p><ul>'
        + "".join(f"<li>{escape(f)}" for f in report["failures"])
        + "</ul>"
    )
    first = "never" if free["first_divergence"] is None else f"step {free['first_divergence']}"
    body = [
        f"<h1>Parity of {escape(name)}</h1>",
        verdict,
        f"<p>{run['steps']} steps ({escape(run['length_is'])}), {run['rows']} rows, {run['parameters'] / 1e6:.2f} M "
        f"parameters stored as {escape(report['storage'])}; {escape(report['engine'])} against "
        f"{escape(report['reference'])}.</p>",
        "<h2>Drift of the state</h2>"
        "<p>Largest difference in each layer, in units of the tensor's largest magnitude.</p>",
        _plot(run["curve"], "scaled", report["gate"]["state"]),
        "<p>One minus the least cosine in each layer.</p>",
        _plot(run["curve"], "cosine", 1 - report["gate"]["cosine"]),
        "<h2>State tensors and logits</h2>",
        _table(
            ["tensor", "largest", "scaled", "1 - cosine", "worst after"],
            [
                [
                    k,
                    f"{d['largest']:.2e}",
                    f"{d['scaled']:.2e}",
                    f"{1 - d['cosine']:.1e}",
                    str(d["worst_step"]),
                ]
                for k, d in [
                    *run["states"].items(),
                    ("logits", run["logits"]),
                    ("log-probability", run["logprob"]),
                ]
            ],
        ),
        "<h2>Free running</h2>",
        f"<p>First divergence: {first}; {free['divergences']} in all. Furthest a sampled token lay from the "
        f"reference's own choice, in probability: {free['largest_margin']:.1e}.</p>",
        "<h2>Chunks against steps, rows against rows</h2>",
        _table(
            ["comparison", "bit for bit", "largest"],
            [
                [f"tokens {c['from']} to {c['to']} in chunks of {c['sizes']}", _yes(c), f"{c['largest']:.1e}"]
                for c in report["chunked"]
            ]
            + [
                [
                    f"1 row against {report['rows']['rows'][1]}",
                    _yes(report["rows"]),
                    f"{report['rows']['largest']:.1e}",
                ]
            ],
        ),
    ]
    title = escape(f"Parity of {name}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        + "\n".join(body)
        + "</html>\n"
    )


def _yes(comparison: Report) -> str:
    return "yes" if comparison["bit_exact"] else "no"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _plot(curve: Sequence[Report], what: str, gate: float) -> str:
    """Log-log lines, one a layer, and the gate as a dashed line."""

    def value(point: Report) -> float:
        raw = 1 - point["cosine"] if what == "cosine" else point["scaled"]
        return min(max(raw, 1e-17), 1e3) if math.isfinite(raw) else 1e3

    layers = list(curve[0]["layers"])
    values = [value(p["layers"][k]) for p in curve for k in layers] + [gate]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last = max(1.0, math.log10(curve[-1]["steps"]))

    def x(steps: float) -> float:
        return _LEFT + math.log10(steps) / last * (_WIDTH - _LEFT - 10)

    def y(number: float) -> float:
        share = (math.log10(number) - low) / max(1, high - low)
        return (_HEIGHT - _BOTTOM) - share * (_HEIGHT - _BOTTOM - 10)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{what} over steps">']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(
            f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - 10}" stroke="#8884"/><text x="8" y="{at + 4:.1f}">1e{power}</text>'
        )
    for power in range(math.floor(last) + 1):
        at = x(10.0**power)
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{10**power}</text>')
    parts.append(f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 1}" text-anchor="middle">steps</text>')
    for i, layer in enumerate(layers):
        points = " ".join(f"{x(p['steps']):.1f},{y(value(p['layers'][layer])):.1f}" for p in curve)
        colour = _COLOURS[i % len(_COLOURS)]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}"><title>{layer}</title></polyline>'
        )
    parts.append(
        f'<path d="M{_LEFT} {y(gate):.1f}H{_WIDTH - 10}" stroke="#d33" stroke-dasharray="5 4"/></svg>'
    )
    return "".join(parts)

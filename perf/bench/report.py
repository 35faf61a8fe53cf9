"""From a report's data to its pages: one HTML file that needs no other, Markdown, plots, raw JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechssm.errors import SettingsError

from .draw import svg
from .result import Cell, Figure, Report

JSON, HTML, MARKDOWN, PLOTS = "report.json", "report.html", "report.md", "plots"


def write(report: Report, folder: Path) -> None:
    """Write every page into ``folder``. Raises SettingsError when it cannot be written to."""
    plots = {plot.name: svg(plot) for section in report.sections for plot in section.plots}
    pages = {
        JSON: report.model_dump_json(indent=1) + "\n",
        HTML: _render("report.html.j2", report, plots, autoescape=True),
        MARKDOWN: _render("report.md.j2", report, plots, autoescape=False),
    }
    try:
        (folder / PLOTS).mkdir(parents=True, exist_ok=True)
        for name, text in plots.items():
            (folder / PLOTS / f"{name}.svg").write_text(text, encoding="utf-8")
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write the report to {folder}: {error.strerror or error}") from error


def read(path: Path) -> Report:
    """A report from its JSON. Raises SettingsError when it is none."""
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} is no report of speechssm bench: {error}") from error


def summary(report: Report) -> str:
    """The last line on standard output: every figure by section and name, and the reasons of what is null."""
    figures = {s.name: {f.name: f.value for f in s.figures} for s in report.sections}
    reasons = {f"{s.name}.{f.name}": f.reason for s in report.sections for f in s.figures if f.reason}
    limits = {f"{s.name}.{f.name}": f.met for s in report.sections for f in s.figures if f.limit is not None}
    return json.dumps(
        {
            "quick": report.quick,
            "seconds": report.seconds,
            "figures": figures,
            "limits": limits,
            "missing": reasons,
        }
    )


def _render(template: str, report: Report, plots: dict[str, str], *, autoescape: bool) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"cell": cell, "limit": limit, "size": size}
    text: str = environment.get_template(template).render(report=report, plots=plots)
    return text


def cell(value: Cell) -> str:
    """A number as a reader wants it: three digits that count, and no more."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        if value == 0:
            return "0"
        if abs(value) >= 1000:
            return f"{value:,.0f}".replace(",", "\u202f")
        return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2e}"
    return value


def limit(figure: Figure) -> str:
    """The limit and whether it is kept."""
    if figure.limit is None:
        return ""
    verdict = "not measured" if figure.value is None else "met" if figure.met else "missed"
    return f"{figure.bound} {cell(figure.limit)}: {verdict}"


def size(count: Any) -> str:
    """Bytes in GiB."""
    return f"{float(count) / 2**30:.1f} GiB"

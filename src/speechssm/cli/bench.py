"""``speechssm bench``: measure this machine and this bundle, and write the report."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechssm.errors import SettingsError

from .generate import Provider
from .plan import size_bytes


class What(StrEnum):
    """Benchmarks by name."""

    LM = "lm"
    PIPELINE = "pipeline"
    ROOFLINE = "roofline"
    ALL = "all"


def bench(
    what: Annotated[What, typer.Argument(help="lm, pipeline, roofline, or all of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report.")],
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes: rough figures, every part.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder.")] = None,
    preset: Annotated[str, typer.Option(help="Shape that 'lm' compares: 40m, tiny, demo, 2b or 9b.")] = "40m",
    dtype: Annotated[str, typer.Option(help="Weights of 'lm', as for export.")] = "float32",
    budget: Annotated[str, typer.Option(help="Memory that 'lm' fills with sessions.")] = "2GiB",
    sessions: Annotated[int, typer.Option(min=1, max=1024, help="Most sessions tried in real time.")] = 8,
    provider: Annotated[Provider, typer.Option(help="Execution provider.")] = Provider.CPU,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one engine call; 0 takes every core.")] = 0,
) -> None:
    """Measure, and write report.html, report.md, report.json and plots; the last line printed is JSON."""
    try:
        from speechssm.perf.bench.report import summary, write
        from speechssm.perf.bench.run import BENCHMARKS, run
        from speechssm.perf.bench.settings import BenchSettings
    except ImportError as error:
        raise SettingsError(
            f"benchmarks need {error.name or error}, which is not installed: run 'pip install speechssm[perf,export]'"
        ) from error

    settings = BenchSettings(
        quick=quick, bundle=bundle, provider=provider.value, threads=threads, shape=preset, dtype=dtype,
        budget_bytes=size_bytes(budget), sessions=sessions,
    )  # fmt: skip
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file: give a folder for the report")
    names = list(BENCHMARKS) if what is What.ALL else [what.value]
    report = run(names, settings, _command())
    write(report, out)
    print(f"{out / 'report.html'}: {len(report.sections)} sections in {report.seconds:.0f} s")
    print(summary(report))


def _command() -> str:
    """What was typed, with paths cut to their last name: a report is to be shown to others."""
    words = [Path(w).name if "/" in w and "=" not in w else w for w in sys.argv[1:]]
    return shlex.join(["speechssm", *words])

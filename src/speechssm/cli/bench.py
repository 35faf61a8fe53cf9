"""``speechssm bench``: measure this machine and this bundle, and write the report."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechssm.errors import SettingsError

from . import options
from .options import Provider
from .plan import size_bytes


class Clock(StrEnum):
    """What times are of."""

    WALL = "wall"
    CPU = "cpu"


class What(StrEnum):
    """Benchmarks by name."""

    LM = "lm"
    LM_GPU = "lm-gpu"
    PEERS = "peers"
    PIPELINE = "pipeline"
    ROOFLINE = "roofline"
    QUALITY = "quality"
    ALL = "all"


def bench(
    what: Annotated[
        What, typer.Argument(help="lm, lm-gpu, peers, pipeline, roofline, quality, or all of them.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report.")],
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes: rough figures, every part.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder.")] = None,
    preset: Annotated[
        str, typer.Option(help="Shape of 'lm', 'lm-gpu' and 'peers': 40m, tiny, demo, 2b or 9b.")
    ] = "40m",
    dtype: Annotated[str, typer.Option(help="Weights of 'lm', as for export.")] = "float32",
    budget: Annotated[str, typer.Option(help="Memory that 'lm' and 'lm-gpu' fill with sessions.")] = "2GiB",
    sessions: Annotated[int, typer.Option(min=1, max=1024, help="Most sessions tried in real time.")] = 8,
    minutes: Annotated[float | None, typer.Option(help="Speech that 'quality' judges, up to 24.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="ROLE=PATH of a judge's model; repeatable.")] = None,
    judge: Annotated[str | None, typer.Option(help="Command that picks one of two transcripts.")] = None,
    speech: Annotated[
        Path | None, typer.Option(help="Recordings for 'quality' to judge instead of new speech.")
    ] = None,
    librispeech_long: Annotated[
        Path | None, typer.Option(help="LibriSpeech-Long folder: prompts and ground truth for 'quality'.")
    ] = None,
    clock: Annotated[
        Clock, typer.Option(help="wall, or cpu on a busy machine, with one thread.")
    ] = Clock.WALL,
    provider: options.Execution = Provider.CPU,
    threads: options.Threads = 0,
    native: options.Native = False,
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

    if clock is Clock.CPU and threads != 1:
        raise SettingsError("processor time adds up over threads: give --threads 1 with --clock cpu")
    settings = BenchSettings(
        clock=clock.value,
        quick=quick, bundle=bundle, provider=provider.value, threads=threads, native=native,
        shape=preset, dtype=dtype,
        budget_bytes=size_bytes(budget), sessions=sessions, minutes=minutes, models=_paths(model or []),
        judge=judge, speech=speech, librispeech_long=librispeech_long,
    )  # fmt: skip
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file: give a folder for the report")
    names = list(BENCHMARKS) if what is What.ALL else [what.value]
    report = run(names, settings, _command())
    write(report, out)
    print(f"{out / 'report.html'}: {len(report.sections)} sections in {report.seconds:.0f} s")
    print(summary(report))


def _paths(words: list[str]) -> dict[str, str]:
    from speechssm.perf.quality.judges import ROLES

    found = {}
    for word in words:
        role, equals, path = word.partition("=")
        if not equals or not path:
            raise SettingsError(f"--model is {word!r}: write ROLE=PATH, such as speaker=voice.onnx")
        if role not in ROLES:
            raise SettingsError(f"--model names no role {role!r}: choose one of {', '.join(ROLES)}")
        if not Path(path).exists():
            raise SettingsError(f"--model {word}: there is no file or folder {path}")
        found[role] = path
    return found


def _command() -> str:
    """What was typed, with paths cut to their last name: a report is to be shown to others."""
    return shlex.join(["speechssm", *(_last_name(word) for word in sys.argv[1:])])


def _last_name(word: str) -> str:
    """A path, alone or behind an equals sign, cut to its last name."""
    role, equals, path = word.rpartition("=")
    return role + equals + (Path(path).name if "/" in path else path)

"""Runs benchmarks one after another and gathers their sections.

A benchmark is a module with ``run(bench) -> Section``. To add one, name it in ``BENCHMARKS``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path

from speechssm.bundle import Bundle, open_bundle
from speechssm.bundle.shipped import demo_voice
from speechssm.cpp_ext.build import operators
from speechssm.engines.loading import BundleGraphs
from speechssm.engines.ort import OrtOptions
from speechssm.errors import SpeechSSMError
from speechssm.runtime.model import Model

from ..capacity import Machine
from ..roofline import Roofline, measure
from .environment import stamp
from .probe import Probe
from .result import Report, Section, missing
from .settings import BenchSettings

BENCHMARKS: dict[str, str] = {
    "roofline": "speechssm.perf.stages",
    "lm": "speechssm.perf.throughput",
    "lm-gpu": "speechssm.perf.lm_gpu",
    "peers": "speechssm.perf.peers",
    "pipeline": "speechssm.perf.pipeline",
    "quality": "speechssm.perf.quality.section",
}
"""Module of each benchmark, in the order ``all`` runs them."""


@dataclass(frozen=True)
class Bench:
    """What benchmarks share: settings, a folder to work in, the machine's ceilings, the loaded bundle."""

    settings: BenchSettings
    work: Path

    def say(self, text: str) -> None:
        """Progress, for a reader who waits."""
        print(text, file=sys.stderr, flush=True)

    @property
    def options(self) -> OrtOptions:
        """How engines are opened."""
        library = operators() if self.settings.native else None
        return OrtOptions(self.settings.provider, self.settings.threads, library)

    @property
    def clock_words(self) -> str:
        """Which clock times are of, for the reader of a section."""
        if self.settings.clock == "wall":
            return "Times are by the clock on the wall."
        return "Times are processor time of one thread: the machine was busy with other work."

    @cached_property
    def roofline(self) -> Roofline:
        """Measured once, so that every section is held against the same ceilings."""
        self.say("ceilings of this machine ...")
        quick = self.settings.quick
        return measure(threads=self.settings.threads or None, passes=3 if quick else 7)

    @property
    def machine(self) -> Machine:
        """The ceilings as the cost model takes them."""
        return Machine(
            self.settings.budget_bytes, self.roofline.read_bytes_per_s, self.roofline.gemm_flops_per_s
        )

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle asked for, or the voice that ships."""
        return open_bundle(self.settings.bundle or demo_voice())

    @cached_property
    def probe(self) -> Probe:
        """The bundle's graphs behind a clock."""
        return Probe(BundleGraphs(self.bundle, self.options), self.settings.delay_s)

    @cached_property
    def model(self) -> Model:
        """The bundle, loaded; its engines' time is in :attr:`probe`."""
        return Model(self.bundle.manifest, self.bundle.digest, self.probe)


def run(names: list[str], settings: BenchSettings, command: str) -> Report:
    """Run the named benchmarks. One that cannot run is a section whose figure is null, with the reason.

    A benchmark asked for alone raises instead, as there is nothing else to report.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    environment = stamp(settings.threads)
    sections: list[Section] = []
    with _work_folder() as work:
        bench = Bench(settings, work)
        for name in names:
            at = time.perf_counter()
            try:
                section: Section = import_module(BENCHMARKS[name]).run(bench)
            except SpeechSSMError as error:
                if len(names) == 1:
                    raise
                section = failed(name, str(error), time.perf_counter() - at)
            sections.append(section)
            bench.say(f"{name}: {section.seconds:.0f} s")
    return Report(
        command=command,
        quick=settings.quick,
        started=started.strftime("%Y-%m-%d %H:%M UTC"),
        seconds=time.perf_counter() - clock,
        environment=environment,
        sections=tuple(sections),
    )


def failed(name: str, reason: str, seconds: float) -> Section:
    """The section of a benchmark that could not run."""
    about = f"This benchmark did not run: {reason}"
    return Section(
        name=name, title=f"bench {name}", about=about, seconds=seconds, figures=(missing(name, "", reason),)
    )


@contextmanager
def _work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="speechssm-bench.") as folder:
        yield Path(folder)

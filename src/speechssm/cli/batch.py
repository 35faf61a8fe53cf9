"""``speechssm batch``: many prompts through one model, exactly one output each, resumable."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

import speechssm
from speechssm.audio import AudioWriter, read_audio
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import AudioError, SessionFailed, SettingsError
from speechssm.runtime.service.jobs import FORMATS, Journal, Listed, read_jobs
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.many import TOGETHER, Request, run_many
from speechssm.runtime.service.outlet import End
from speechssm.runtime.service.service import Service
from speechssm.runtime.service.ticket import Ticket

from . import options
from .options import Provider

JOURNAL, LOCK = "results.jsonl", ".lock"


def batch(
    jobs: Annotated[Path, typer.Argument(help="JOBS.jsonl: one object a line, prompt and seconds at least.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the audio and results.jsonl.")],
    bundle: options.Bundle = None,
    together: Annotated[int, typer.Option(min=1, max=1024, help="Sessions at a time.")] = TOGETHER,
    suffix: Annotated[str, typer.Option("--format", help="wav, flac or w64.")] = "wav",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do again what was done for other options.")
    ] = False,
    provider: options.Execution = Provider.CPU,
    threads: options.Threads = 0,
    native: options.Native = False,
    engines: options.Engines = None,
    as_json: options.AsJson = False,
) -> None:
    """Continue every prompt of a list. Run it again after an interruption: what is done stays done."""
    if suffix not in FORMATS:
        raise SettingsError(f"--format is {suffix!r}: give one of {', '.join(FORMATS)}")
    model = speechssm.load(
        bundle,
        provider=provider.value,
        threads=threads,
        native=native,
        engines=engines,
    )
    listed = read_jobs(jobs, model.digest)
    with _folder(out):
        work = _Batch(out, listed, suffix, overwrite)
        limits = ServiceLimits(sessions=together, rows=together, prompt_s=3600.0)
        started = time.perf_counter()
        with Service(model, limits) as service, work:
            requests = (Request(one.number, one.prompt, one.options) for one in work.todo)
            run_many(service, requests, work.take, together)
            metrics = service.metrics()
        wall = time.perf_counter() - started
    report = {
        "jobs": len(listed), "done": work.done, "skipped": len(listed) - len(work.todo), "failed": len(work.errors),
        "seconds": work.seconds, "wall_s": wall, "rtf": wall / work.seconds if work.seconds else None,
        "rows_per_step": metrics.rows_per_step, "stage_s": metrics.stage_s, "out": str(out),
    }  # fmt: skip
    for number, message in sorted(work.errors.items())[:20]:
        print(f"job {number}: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{out}: {work.done} done ({work.seconds:.1f} s of speech in {wall:.1f} s), {report['skipped']} were "
            f"done before, {report['failed']} failed"
        )
    if work.errors:
        raise SessionFailed(f"{len(work.errors)} of {len(listed)} jobs failed: correct them and run it again")


class _Batch:
    """Writers of the jobs under way, the journal, and the progress bar."""

    def __init__(self, out: Path, listed: list[Listed], suffix: str, overwrite: bool) -> None:
        self.journal = Journal(out / JOURNAL)
        self._out, self._suffix = out, suffix
        self._by_number = {one.number: one for one in listed}
        self.todo = [one for one in listed if not self.journal.is_done(one, self._path(one))]
        others = [one.number for one in self.todo if self.journal.is_another(one)]
        if others and not overwrite:
            raise SettingsError(
                f"job {others[0]} in {out} was done with other options or another bundle: choose another folder, "
                "or pass --overwrite to do it again"
            )
        for one in self.todo:
            for left in out.glob(f"{self._path(one).name}.*.partial"):  # of a run that was killed
                left.unlink(missing_ok=True)
        self._writers: dict[int, AudioWriter] = {}
        self.errors: dict[int, str] = {}
        self.done, self.seconds = 0, 0.0
        total = sum(one.job.seconds for one in self.todo)
        self._bar = tqdm(
            total=round(total, 2), unit="s", disable=not sys.stderr.isatty(), leave=False,
            bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]",
        )  # fmt: skip

    def _path(self, one: Listed) -> Path:
        return self._out / f"{one.number:06d}.{self._suffix}"

    def take(self, request: Request, ticket: Ticket | None, got: np.ndarray | End) -> None:
        """Write what came; an error of one job is no error of the others."""
        one = self._by_number[request.number]
        try:
            if not isinstance(got, End):
                if one.number not in self.errors:
                    self._writer(one).write(got)
                    self._bar.update(len(got) / SAMPLE_RATE_HZ)
            elif one.number in self.errors or got.kind != "finished":
                self._drop(one, self.errors.get(one.number) or got.message or got.kind)
            else:
                assert ticket is not None
                self._finish(one, ticket)
        except AudioError as error:
            self._drop(one, str(error))
            if ticket is not None and not isinstance(got, End):
                ticket.cancel()

    def _writer(self, one: Listed) -> AudioWriter:
        if one.number not in self._writers:
            writer = self._writers[one.number] = AudioWriter(self._path(one))
            if one.job.with_prompt:
                writer.write(read_audio(one.prompt))
        return self._writers[one.number]

    def _finish(self, one: Listed, ticket: Ticket) -> None:
        writer = self._writer(one)
        writer.close()
        del self._writers[one.number]
        stats = ticket.stats
        seconds = stats.samples / SAMPLE_RATE_HZ
        facts: dict[str, Any] = {"file": self._path(one).name, "seconds": seconds, "tokens": stats.tokens}
        self.journal.done(one, **facts)
        self.done += 1
        self.seconds += seconds

    def _drop(self, one: Listed, message: str) -> None:
        self.errors[one.number] = message
        writer = self._writers.pop(one.number, None)
        if writer is not None:
            writer.abort()

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        for writer in self._writers.values():
            writer.abort()


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """The output folder, for one run at a time; the lock is let go by the system if the run is killed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Not emptied and no link followed: the name may be anybody's in a folder that others write to.
        lock = os.fdopen(os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"cannot use the folder {out}: {getattr(error, 'strerror', None) or error}; choose another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"another run is writing to {out}: wait for it or choose another folder"
            ) from error
        yield

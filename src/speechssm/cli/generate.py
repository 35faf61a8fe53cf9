"""``speechssm generate``: a prompt recording in, a continued recording out."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

import speechssm
from speechssm.audio import AudioWriter
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.bundle.shipped import demo_voice
from speechssm.errors import SettingsError
from speechssm.runtime.session import DAY_SECONDS, Session

from . import options, stopping
from .decoders import read_quietly
from .options import Provider


class Schedule(StrEnum):
    """Published acoustic schedules."""

    DEFAULT = "default"
    FAST = "fast"


def generate(
    prompt: Annotated[Path, typer.Argument(help="Recording to continue: 1 s to 1 h, any common format.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write: .wav, .flac or .w64.")],
    seconds: Annotated[float, typer.Option(help="Seconds of new speech.")],
    bundle: options.Bundle = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness; picked when left out.")] = None,
    speaker: Annotated[Path | None, typer.Option(help="Recording of another voice to speak in.")] = None,
    with_prompt: Annotated[
        bool, typer.Option("--with-prompt", help="Put the prompt before the new speech.")
    ] = False,
    ramp: Annotated[
        bool, typer.Option("--ramp", help="Start speaking early, with less context at first.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; 1 is the paper's.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Keep the likeliest tokens that reach this probability.")
    ] = 1.0,
    schedule: Annotated[Schedule, typer.Option(help="Passes of the acoustic stage.")] = Schedule.DEFAULT,
    provider: options.Execution = Provider.CPU,
    threads: options.Threads = 0,
    native: options.Native = False,
    engines: options.Engines = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Close the prefill engine once the prompt is read.")
    ] = False,
    unbounded: Annotated[bool, typer.Option("--unbounded", help="Allow more than 24 h.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue PROMPT by SECONDS of new speech in the same voice."""
    check_seconds(seconds, unbounded)
    folder = bundle if bundle is not None else demo_voice()
    model = speechssm.load(
        folder,
        provider=provider.value,
        threads=threads,
        native=native,
        engines=engines,
        low_memory=low_memory,
    )
    # The prompt is read once; read here, it can also be written in front.
    audio = read_quietly(prompt)
    voice = None if speaker is None else read_quietly(speaker)
    started = time.perf_counter()
    with _written(out) as writer:
        session = model.open(
            audio, rate_hz=SAMPLE_RATE_HZ, seed=seed, speaker=voice, speaker_rate_hz=SAMPLE_RATE_HZ,
            temperature=temperature, top_k=top_k, top_p=top_p, ramp=ramp, schedule=schedule.value,
        )  # fmt: skip
        with session:
            _write_all(session, writer, seconds, unbounded, audio if with_prompt else audio[:0])
    wall = time.perf_counter() - started
    report = summary(session, wall, folder)
    if as_json:
        print(json.dumps(report))
    else:
        what = "noise: this bundle has random weights" if model.manifest.seeded else "speech"
        print(
            f"{out}: {report['seconds']:.2f} s of {what} in {wall:.2f} s "
            f"({report['rtf']:.2f}x real time), seed {report['seed']}"
        )


def check_seconds(seconds: float, unbounded: bool) -> None:
    """Refuse a length that is not positive, or past 24 h without ``unbounded``, before anything is loaded."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise SettingsError(f"--seconds is {seconds}: give a length above zero")
    if seconds > DAY_SECONDS and not unbounded:
        raise SettingsError(f"--seconds is {seconds:g}, more than 24 h: add --unbounded if that is meant")


@contextmanager
def _written(out: Path) -> Iterator[AudioWriter]:
    """A writer that keeps what it has when the block is left early, and says so in a note of the error."""
    writer = AudioWriter(out, keep_partial=True)
    try:
        with writer:
            yield writer
    except BaseException as error:
        if writer.close() is not None:
            error.add_note(f"{out} holds the first {writer.seconds:.1f} s")
        raise


def _write_all(
    session: Session, writer: AudioWriter, seconds: float, unbounded: bool, prompt: NDArray[np.float32]
) -> None:
    """Write the stream; ``prompt`` (n) goes before its first piece, so that a prompt alone is never the result."""
    with tqdm(
        total=round(seconds, 2), unit="s", disable=not sys.stderr.isatty(), leave=False,
        bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]",
    ) as bar:  # fmt: skip
        for piece in session.stream(seconds, unbounded=unbounded):
            if not writer.samples:
                writer.write(prompt)
            writer.write(piece)
            bar.update(len(piece) / SAMPLE_RATE_HZ)
            stopping.check()


def summary(session: Session, wall_s: float, bundle: Path) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    stats = session.stats
    seconds = stats.samples / SAMPLE_RATE_HZ
    return {
        "seconds": seconds,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "tokens": stats.tokens,
        "windows": stats.windows,
        "rtf": wall_s / seconds,
        "first_audio_s": stats.first_audio_s,
        "lm_s": stats.lm_s,
        "acoustic_s": stats.acoustic_s,
        "codec_s": stats.codec_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "seed": session.settings.seed,
        "bundle": str(bundle),
    }


def peak_rss_bytes() -> int:
    """Largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

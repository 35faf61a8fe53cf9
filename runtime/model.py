"""A loaded bundle: what every session of it shares."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.audio import AudioWriter, read_audio
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.bundle import Manifest, limits, state_bytes
from speechssm.engines.protocol import Graph
from speechssm.errors import BundleError, SettingsError

from .acoustic import SCHEDULES, AcousticSchedule
from .clock import SessionStats
from .lm import LanguageModel
from .prefill_memory import LateGraph, Reading
from .session import Session
from .session_settings import SessionSettings
from .settings import SamplerSettings
from .snapshot import read_snapshot
from .stages import Stages
from .windows import WindowSettings

Recording = str | PathLike[str] | np.ndarray
"""A path to a recording, or its samples (n) or (n, channels) with ``rate_hz`` beside it."""


@dataclass(frozen=True)
class Speech:
    """What ``generate`` returns: float32 audio (n), its seed, and where the time went."""

    audio: np.ndarray
    seed: int
    stats: SessionStats
    sample_rate_hz: int = SAMPLE_RATE_HZ

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.audio) / self.sample_rate_hz

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a WAV or FLAC file, by the suffix of ``path``. Raises AudioError."""
        with AudioWriter(Path(path)) as writer:
            writer.write(self.audio)
        return Path(path)


class Model:
    """A bundle made runnable. Thread-safe: sessions of one model may run in several threads.

    ``graphs`` gives a graph by its manifest name; ``digest`` names the bundle in snapshots. ``release``
    gives back one graph's memory: with it, the prefill graph goes when no prompt is being read, and
    ``lm_step`` opens at the first step rather than here.
    """

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        graphs: Callable[[str], Graph],
        release: Callable[[str], None] | None = None,
    ) -> None:
        self.manifest = manifest
        self.digest = digest
        self._graphs = graphs
        lm = manifest.lm
        self.language_model = LanguageModel(
            step=graphs("lm_step") if release is None else LateGraph("lm_step", lambda: graphs("lm_step")),
            chunk=lambda: graphs("lm_chunk"),
            schema=manifest.graphs["lm_step"].state,
            vocab=lm.shape.vocab,
            k_max=lm.k_max,
            lru_limit=lm.lru_limit,
            reading=Reading(None if release is None else lambda: release("lm_chunk")),
        )

    @property
    def stages(self) -> Stages:
        """The four parts. Raises BundleError when the bundle lacks one of them."""
        self._check_speaks()
        assert self.manifest.codec
        codec = self.manifest.codec.shape
        return Stages(
            language_model=self.language_model,
            levels=codec.levels,
            codes=codec.codes,
            buckets=self.manifest.windows.buckets,
            codec_schema=self.manifest.graphs["codec_decode"].state,
            digest=self.digest,
            graphs=self._graphs,
        )

    @property
    def session_bytes(self) -> int:
        """Bytes of recurrent state of one session."""
        return state_bytes(self.language_model.schema)

    @property
    def snapshot_state_bytes(self) -> int:
        """Most bytes of state in one session's snapshot; a cache that grows has no bound but the format's."""
        if any(s.grows for s in self.language_model.schema):
            return limits.SNAPSHOT_BYTES
        return self.session_bytes + state_bytes(self.stages.codec_schema)

    # what callers use

    def generate(
        self,
        prompt: Recording,
        *,
        seconds: float,
        seed: int | None = None,
        rate_hz: int | None = None,
        speaker: Recording | None = None,
        speaker_rate_hz: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        ramp: bool = False,
        schedule: str | AcousticSchedule = "default",
    ) -> Speech:
        """Continue ``prompt`` for ``seconds`` and return all of the new speech.

        Arguments are those of :meth:`open`. For more than a few minutes prefer ``open`` and ``stream``,
        whose memory does not grow.
        """
        session = self.open(
            prompt, seed=seed, rate_hz=rate_hz, speaker=speaker, speaker_rate_hz=speaker_rate_hz,
            temperature=temperature, top_k=top_k, top_p=top_p, ramp=ramp, schedule=schedule,
        )  # fmt: skip
        with session:
            audio = np.concatenate(list(session.stream(seconds)))
            return Speech(audio, session.settings.seed, session.stats)

    def open(
        self,
        prompt: Recording,
        *,
        seed: int | None = None,
        rate_hz: int | None = None,
        speaker: Recording | None = None,
        speaker_rate_hz: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        ramp: bool = False,
        schedule: str | AcousticSchedule = "default",
    ) -> Session:
        """Start a session that continues ``prompt`` (1 s to 1 h, any common format and rate).

        ``seed`` None picks one (``session.settings.seed``). ``speaker`` is a recording of another voice
        to speak in; ``rate_hz`` and ``speaker_rate_hz`` are needed when samples are given instead of
        paths. ``ramp`` lets speech start after 2 s of tokens instead of 30 s. ``schedule`` is
        'default', 'fast' or an AcousticSchedule.

        Raises AudioError for a recording that cannot be used, SettingsError for a setting outside its
        range, BundleError when the bundle cannot speak.
        """
        settings = self.settings(
            seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, ramp=ramp, schedule=schedule
        )
        audio = read_audio(prompt, rate_hz)
        other = None if speaker is None else read_audio(speaker, speaker_rate_hz)
        return self._start(settings, audio, other)

    def settings(
        self,
        *,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        ramp: bool = False,
        schedule: str | AcousticSchedule = "default",
    ) -> SessionSettings:
        """The settings of a session, checked against this bundle. Raises SettingsError or BundleError."""
        settings = SessionSettings(
            seed=secrets.randbits(63) if seed is None else seed,
            sampler=SamplerSettings(temperature, top_k, top_p),
            windows=self._windows(ramp),
            acoustic=named_schedule(schedule),
        )
        self.stages.check(settings.sampler, settings.windows, settings.acoustic)
        return settings

    def generate_many(
        self,
        prompts: Iterable[Recording],
        *,
        seconds: float,
        seeds: Iterable[int] | None = None,
        together: int = 16,
        **options: Any,
    ) -> Iterator[Speech]:
        """Continue many prompts at once, ``together`` at a time; yields in the order of ``prompts``.

        Each sounds as :meth:`generate` with the same seed makes it, sample for sample; together they take
        less time, since all share the language model's steps. ``options`` are those of :meth:`generate`
        but ``seed``. All audio is in memory at the end: for long streams use a
        :class:`~speechssm.runtime.service.service.Service`.

        Raises what :meth:`generate` raises, for the first prompt that fails; the others are then cancelled.
        """
        from .service.many import generate_many

        return generate_many(self, prompts, seconds=seconds, seeds=seeds, together=together, **options)

    def restore(self, path: str | PathLike[str]) -> Session:
        """A session that goes on from a snapshot of this bundle; ``resume()`` ends its stream.

        Raises SnapshotError for a file that is damaged, too new, or of another model.
        """
        stages = self.stages
        return Session.thaw(stages, read_snapshot(Path(path), self.digest, self.snapshot_state_bytes))

    def _start(self, settings: SessionSettings, audio: np.ndarray, other: np.ndarray | None) -> Session:
        opened = time.perf_counter()
        stages = self.stages
        tokens = stages.tokenize(audio)
        voice = stages.voice(audio, tokens) if other is None else stages.voice(other, stages.tokenize(other))
        session = Session(stages, settings, voice, opened=opened)
        session.read_prompt(tokens)
        session.stats.prompt_s = time.perf_counter() - opened
        return session

    def _windows(self, ramp: bool) -> WindowSettings:
        windows = self.manifest.windows
        return WindowSettings(windows.window_tokens, windows.overlap_tokens, ramp)

    def _check_speaks(self) -> None:
        if not self.manifest.speaks:
            missing = [p for p in ("tokenizer", "acoustic", "codec") if getattr(self.manifest, p) is None]
            raise BundleError(
                f"bundle {self.manifest.name} has no {' and no '.join(missing)}, so it cannot turn speech into speech: "
                "export it with those parts, or use its language model alone"
            )


def named_schedule(schedule: str | AcousticSchedule) -> AcousticSchedule:
    """The published schedule of that name, or the schedule itself. Raises SettingsError."""
    if isinstance(schedule, AcousticSchedule):
        return schedule
    if schedule not in SCHEDULES:
        raise SettingsError(
            f"there is no acoustic schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}"
        )
    return SCHEDULES[schedule]

"""``speechssm bench quality``: does speech stay speech, by the minute, at its joins, and in its words?

Speech is the bundle's own, continuing a prompt; or recordings, to see what the measures say of real speech;
or LibriSpeech-Long's prompts, with how they really went on beside it. Each judge that is absent makes its
figures null, with the reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ
from speechssm.errors import BundleError
from speechssm.runtime.acoustic import SCHEDULES

from ..bench.result import Cell, Figure, Plot, Section, Series, Table, measured, missing
from ..bench.run import Bench
from ..soak import prompt as noise
from . import signals
from .joins import OVERLAPS_S, Joined, grid
from .judges import ROLES, Judges
from .speech import PROMPT_S, Audio, Speech, librispeech_long, recorded, recordings, spoken
from .words import coherence, judge_pairs, perplexity

MINUTE = 60 * SAMPLE_RATE_HZ
MINUTES, QUICK_MINUTES, LONGEST = 4.0, 0.25, 24.0
MOST = 8
"""Recordings or prompts that are taken from a folder."""
MOS_S = 8.0
"""Length of the pieces a MOS model hears; three a minute."""
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "prompt.flac"

Row = dict[str, Any]


def run(bench: Bench) -> Section:
    """Measure and report. Raises BundleError when the bundle cannot speak."""
    started = time.perf_counter()
    if not bench.bundle.manifest.speaks:
        raise BundleError(
            f"bundle {bench.bundle.manifest.name} lacks parts, so it makes no speech: pass one with all four"
        )
    judges = Judges(bench.settings.models)
    all_speech = list(_speech(bench))
    rows = [row for speech in all_speech for row in by_minute(speech, judges)]
    joined = list(_joins(bench, all_speech[0], judges))
    texts, words = _words(bench, all_speech, judges)
    manifest = bench.bundle.manifest
    whose = "recordings" if bench.settings.speech else f"bundle {manifest.name}"
    seeded = " Its weights are random, so what it says is noise." if manifest.seeded else ""
    return Section(
        name="quality",
        title="Quality over time",
        about=(
            f"{len(all_speech)} pieces of speech, {sum(len(s.audio) for s in all_speech) / MINUTE:.1f} minutes in all, "
            f"of {whose}.{'' if bench.settings.speech else seeded} Silence: 20 ms frames 35 dB below the loud ones or "
            "60 dB below full scale. Repetition: token 4-grams said before in the same minute, runs counted once. "
            "Entropy: of the minute's own token distribution. Speaker: cosine to the prompt. Joins: the "
            "change of spectrum over that at other places, and the largest second difference over its surroundings; "
            "1 is as anywhere else."
        ),
        seconds=time.perf_counter() - started,
        figures=(*_minute_figures(rows, judges), *_join_figures(joined), *words),
        tables=(
            _as_table("minutes", "By the minute", rows),
            _as_table("joins", "Joins, by overlap and padding of the last window", joined,
                      "Boundary similarity is the cosine of the voices 3 s before and behind a join. The last "
                      "window is the padded one: its silence and voice show what padding does."),
            Table(
                name="judges", title="Judges", columns=("role", "here", "reason"),
                rows=tuple((r, r not in judges.absent, judges.absent.get(r, "")) for r in ROLES),
            ),
        ),
        plots=tuple(_plots(rows, texts)),
        facts={"texts": texts},
    )  # fmt: skip


def _speech(bench: Bench) -> Iterable[Speech]:
    settings, model = bench.settings, bench.model
    minutes = settings.minutes or (QUICK_MINUTES if settings.quick else MINUTES)
    seconds = min(minutes, LONGEST) * 60
    schedule = "fast" if settings.quick else "default"
    if settings.speech is not None:
        for path in recordings(settings.speech)[:MOST]:
            yield recorded(model, path, seconds)
    elif settings.librispeech_long is not None:
        for name, prompt, truth in librispeech_long(settings.librispeech_long, MOST):
            bench.say(f"quality: {name} ...")
            yield spoken(
                model,
                prompt,
                seconds,
                name=name,
                schedule=schedule,
                truth=truth[: round(seconds * SAMPLE_RATE_HZ)],
            )
    else:
        bench.say(f"quality: {seconds:.0f} s of speech ...")
        yield spoken(model, _prompt(), seconds, name="speech", schedule=schedule)


def _prompt() -> Audio:
    """The checkout's example, or noise where the package is installed without it."""
    from speechssm.audio import read_audio

    return read_audio(EXAMPLE) if EXAMPLE.is_file() else noise(PROMPT_S, 0)


def by_minute(speech: Speech, judges: Judges) -> Iterable[Row]:
    """Everything that is measured of each minute; a last stretch shorter than 10 s is left out."""
    for minute in range(math.ceil(len(speech.audio) / MINUTE)):
        audio = speech.audio[minute * MINUTE : (minute + 1) * MINUTE]
        if len(audio) < 10 * SAMPLE_RATE_HZ and minute:
            break
        at = minute * 60 * TOKEN_RATE_HZ
        tokens = speech.tokens[at : at + 60 * TOKEN_RATE_HZ].tolist()
        voice, mos, distill = (judges.get(role) for role in ("speaker", "dnsmos", "distill"))
        yield {
            "speech": speech.name,
            "minute": minute + 1,
            "seconds": len(audio) / SAMPLE_RATE_HZ,
            "silence": signals.silence(audio),
            "repetition": signals.repetition(tokens),
            "entropy": signals.entropy(tokens),
            "speaker": _similarity(voice, speech.prompt, audio),
            "dnsmos": _mean(mos, audio),
            "distill": _mean(distill, audio),
        }


def _similarity(embed: Callable[..., Any] | None, a: Audio, b: Audio) -> float | None:
    return None if embed is None else float(np.dot(embed(a), embed(b)))


def _mean(judge: Callable[..., Any] | None, audio: Audio) -> float | None:
    """Mean over three pieces of 8 s, or what there is."""
    if judge is None:
        return None
    length = round(MOS_S * SAMPLE_RATE_HZ)
    starts = np.linspace(0, max(0, len(audio) - length), 3).astype(int)
    return float(np.mean([judge(audio[at : at + length]) for at in sorted(set(starts.tolist()))]))


def _joins(bench: Bench, speech: Speech, judges: Judges) -> Iterable[Row]:
    """The grid on one stream, long enough for a second window that is short."""
    settings, model = bench.settings, bench.model
    window = bench.bundle.manifest.windows.window_tokens
    wanted = window + 125 if settings.quick else 2 * window + 125
    tokens = speech.tokens
    while len(tokens) < wanted:  # a short stream goes round; the joins are no worse for it
        tokens = np.concatenate([tokens, speech.tokens])
    stages = model.stages
    voice = stages.voice(speech.prompt, stages.tokenize(speech.prompt))
    bench.say("quality: joins over overlap and padding ...")
    overlaps = OVERLAPS_S[:2] if settings.quick else OVERLAPS_S
    for one in grid(stages, tokens[:wanted], voice, SCHEDULES["fast"], overlaps, window):
        yield _join_row(one, judges.get("speaker"))


def _join_row(one: Joined, embed: Callable[..., Any] | None) -> Row:
    near = 3 * SAMPLE_RATE_HZ
    jumps, clicks = signals.jumps(one.audio, one.joins), signals.clicks(one.audio, one.joins)
    sides = [_similarity(embed, one.audio[max(0, j - near) : j], one.audio[j : j + near]) for j in one.joins]
    heard = [s for s in sides if s is not None]
    last = one.audio[one.last :]
    return {
        "overlap_s": one.overlap_s,
        "padding": one.padding,
        "joins": len(one.joins),
        "spectral jump": float(np.mean(jumps)) if jumps else None,
        "click": max(clicks) if clicks else None,
        "boundary similarity": float(np.mean(heard)) if heard else None,
        "silence of the last window": signals.silence(last),
        "silence before it": signals.silence(one.audio[: one.last]),
        "voice of the last window": _similarity(embed, one.audio[: one.last], last) if one.last else None,
    }


def _words(bench: Bench, all_speech: Sequence[Speech], judges: Judges) -> tuple[dict[str, Any], list[Figure]]:
    """Transcripts, SC-L, perplexity and the judge's verdict; null with the reason where a model is absent."""
    texts: dict[str, Any] = {"coherence": {}}
    figures: list[Figure] = []
    hear = judges.get("asr")
    prompts = {s.name: hear(s.prompt) for s in all_speech} if hear else {}
    said = {s.name: hear(s.audio) for s in all_speech} if hear else {}
    truth = {s.name: hear(s.truth) for s in all_speech if s.truth is not None} if hear else {}
    embed, nats = judges.get("sentence"), judges.get("text")

    def why(role: str) -> str:
        return judges.reason("asr" if hear is None else role)

    if hear is not None and embed is not None:
        texts["coherence"] = {name: coherence(prompts[name], text, embed) for name, text in said.items()}
        points = [similarity for steps in texts["coherence"].values() for _, similarity in steps]
        figures.append(
            measured("SC-L: mean similarity of 100-word steps to the prompt", float(np.mean(points)), "")
            if points
            else missing(
                "SC-L: mean similarity of 100-word steps to the prompt", "", "fewer than 50 words were heard"
            )
        )
    else:
        figures.append(missing("SC-L: mean similarity of 100-word steps to the prompt", "", why("sentence")))
    for name, found in (("transcripts", said), ("how they really went on", truth)):
        if hear is None or nats is None:
            figures.append(missing(f"perplexity of {name}", "", why("text")))
        elif not found:
            figures.append(
                missing(f"perplexity of {name}", "", "it is known only with --speech or --librispeech-long")
            )
        else:
            figures.append(measured(f"perplexity of {name}", perplexity(list(found.values()), nats), ""))
    figures.append(_verdict(bench, prompts, said, truth, why("asr")))
    texts |= {"prompts": prompts, "said": said, "truth": truth}
    return texts, figures


def _verdict(
    bench: Bench, prompts: dict[str, str], said: dict[str, str], truth: dict[str, str], why: str
) -> Figure:
    name, command = "wins over how it really went on", bench.settings.judge
    if command is None:
        return missing(name, "", "no judge: --judge COMMAND")
    names = [n for n in said if n in truth and bench.settings.speech is None]
    if not names:
        return missing(
            name, "", why if not said else "how it really went on is known only with --librispeech-long"
        )
    found = judge_pairs(
        command, [prompts[n] for n in names], [said[n] for n in names], [truth[n] for n in names]
    )
    return measured(name, found.win_share, "share of pairs")


def _minute_figures(rows: Sequence[Row], judges: Judges) -> Iterable[Figure]:
    last = max(row["minute"] for row in rows)
    for key, unit in (("silence", "share"), ("repetition", "share"), ("entropy", "bit")):
        for what, minute in (("first", 1), ("last", last)):
            values = [row[key] for row in rows if row["minute"] == minute]
            yield measured(f"{key}, {what} minute", float(np.mean(values)), unit)
    for key, unit in (("speaker", "cosine"), ("dnsmos", "MOS"), ("distill", "MOS")):
        for what, minute in (("first", 1), ("last", last)):
            values = [row[key] for row in rows if row["minute"] == minute and row[key] is not None]
            name = f"{key}, {what} minute"
            yield (
                measured(name, float(np.mean(values)), unit)
                if values
                else missing(name, unit, judges.reason(key))
            )


def _join_figures(joined: Sequence[Row]) -> Iterable[Figure]:
    ours = next(row for row in joined if row["overlap_s"] == 4.0 and row["padding"] == "stream start")
    for key in ("spectral jump", "click"):
        name = f"{key} at joins (overlap 4 s, stream start)"
        value = ours[key]
        yield (
            measured(name, value, "x usual")
            if value is not None
            else missing(name, "x usual", "there is no join")
        )


def _as_table(name: str, title: str, rows: Sequence[Row], note: str = "") -> Table:
    cells: tuple[tuple[Cell, ...], ...] = tuple(tuple(row.values()) for row in rows)
    return Table(name=name, title=title, columns=tuple(rows[0]), rows=cells, note=note)


def _plots(rows: Sequence[Row], texts: dict[str, Any]) -> Iterable[Plot]:
    for key, label in (
        ("silence", "share"), ("repetition", "share"), ("entropy", "bit"), ("speaker", "cosine"), ("dnsmos", "MOS"),
        ("distill", "MOS"),
    ):  # fmt: skip
        series = []
        for name in dict.fromkeys(row["speech"] for row in rows):
            mine = [row for row in rows if row["speech"] == name and row[key] is not None]
            if mine:
                x, y = tuple(float(row["minute"]) for row in mine), tuple(row[key] for row in mine)
                series.append(Series(name=name, x=x, y=y))
        if series:
            yield Plot(
                name=f"quality-{key}", title=f"Quality by the minute: {key}", x_label="minute", y_label=label,
                series=tuple(series),
            )  # fmt: skip
    lines = tuple(
        Series(name=name, x=tuple(float(w) for w, _ in steps), y=tuple(v for _, v in steps))
        for name, steps in texts["coherence"].items() if steps
    )  # fmt: skip
    if lines:
        yield Plot(
            name="coherence",
            title="SC-L: similarity to the prompt",
            x_label="words said",
            y_label="cosine",
            series=lines,
        )  # fmt: skip

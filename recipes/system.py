"""Stage ``judge-system``: held-out readers continued for minutes by the demo bundle, judged minute by minute.

20 prompts of up to 10 s are continued for 4 minutes, the first 3 of them for 16. Judges as in
``speechssm bench quality``: Resemblyzer's network for the voice, DNSMOS for naturalness, Whisper-base for the
words of the first and the last minute. What one prompt gave is kept in its own file, so that a stopped run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_RATE_HZ, TOKEN_SAMPLES
from speechssm.perf.quality import section, signals
from speechssm.perf.quality.judges import Judges
from speechssm.perf.quality.section import MINUTE
from speechssm.perf.quality.speech import Speech, spoken

from . import listen, places, prose, weights
from .judges import opened
from .teachers.align import words

PROMPTS, MINUTES = 20, 4.0
LONG_PROMPTS, LONG_MINUTES = 3, 16.0
PHRASE, TIMES = 20, 3
"""A loop: a phrase of so many tokens, or one that divides it, so many times running."""
BARS = {"similarity_worst_minute": 0.68, "dnsmos_lost": 0.15, "bad_minutes": 0.05}
"""Issue 4's: the first is a lower limit, the others upper ones."""
SILENT_SHARE = 0.30

Row = dict[str, Any]


def loops(tokens: Sequence[int]) -> bool:
    """Whether some phrase of PHRASE tokens comes TIMES times running."""
    said = np.asarray(tokens)
    same = said[PHRASE:] == said[:-PHRASE] if len(said) > PHRASE else np.zeros(0, bool)
    run = 0
    for equal in same:
        run = run + 1 if equal else 0
        if run >= (TIMES - 1) * PHRASE:
            return True
    return False


def spoken_tokens(tokens: NDArray[np.int64], audio: NDArray[np.float32]) -> list[int]:
    """The tokens whose 40 ms are not silent."""
    quiet, each = signals.silent(audio), TOKEN_SAMPLES // signals.FRAME
    count = min(len(tokens), len(quiet) // each)
    heard = ~quiet[: count * each].reshape(count, each).all(1)
    return [int(t) for t in tokens[:count][heard]]


def minutes(speech: Speech, judges: Judges) -> Iterable[Row]:
    """Every minute of a continuation, as ``bench quality`` measures it, and whether what is spoken loops."""
    for row in section.by_minute(speech, judges):
        at, length = row["minute"] - 1, 60 * TOKEN_RATE_HZ
        audio = speech.audio[at * MINUTE : (at + 1) * MINUTE]
        said = spoken_tokens(speech.tokens[at * length : (at + 1) * length], audio)
        yield {
            "minute": row["minute"],
            "similarity": row["speaker"],
            "dnsmos": row["dnsmos"],
            "silence": row["silence"],
            "loop": loops(said),
            "repetition": signals.repetition(said),
        }


def run(root: Path, schedule: str = "default", threads: int = 2, most: int = PROMPTS) -> dict[str, Any]:
    """Speak and judge what is not there yet; the figures of all, in ``system.json`` and ``minutes.json``."""
    folder = places.cache("system", schedule)
    folder.mkdir(parents=True, exist_ok=True)
    model = speechssm.load(weights.VOICE, threads=threads)
    judges = opened()
    hear = judges.get("asr")
    for number, (name, prompt) in enumerate(tqdm(listen.prompts(root, most), unit="prompt")):
        target = folder / f"{name}.json"
        if target.exists() and places.read_json(target)["digest"] == model.digest:
            continue
        length = LONG_MINUTES if number < LONG_PROMPTS else MINUTES
        speech = spoken(model, prompt, 60 * length, name=name, schedule=schedule, seed=number)
        ends = (speech.audio[:MINUTE], speech.audio[-MINUTE:])
        soundfile.write(
            folder / f"{name}.ogg", speech.audio[:MINUTE], SAMPLE_RATE_HZ, format="OGG", subtype="OPUS"
        )
        said = [hear(audio) for audio in ends] if hear else None
        found = {
            "digest": model.digest,
            "number": number,
            "minutes": list(minutes(speech, judges)),
            "said": said,
        }
        places.write_json(target, found)
    known = [places.read_json(f) for f in sorted(folder.glob("*.json")) if f.stem != "system"]
    known = [k for k in known if k["digest"] == model.digest]
    figures = {"schedule": schedule, "bundle": model.digest[:12], **summary(known)}
    figures["text"] = _read(root, known)
    figures["absent"] = judges.absent
    places.write_json(folder / "system.json", figures)
    places.write_json(places.cache("system") / "minutes.json", by_minute(known))
    return figures


def by_minute(known: Sequence[Row]) -> list[Row]:
    """Means over all continuations that last so long; ``loops`` is the share of them that loop."""
    rows = []
    for minute in range(1, 1 + max((len(k["minutes"]) for k in known), default=0)):
        these = [k["minutes"][minute - 1] for k in known if len(k["minutes"]) >= minute]
        means = {key: _mean([m[key] for m in these]) for key in ("similarity", "dnsmos", "silence")}
        rows.append(
            {
                "minute": minute,
                **means,
                "loops": _mean([float(m["loop"]) for m in these]),
                "continuations": len(these),
            }
        )
    return rows


def summary(known: Sequence[Row]) -> dict[str, Any]:
    """The issue's figures and whether each bar is met: None where its judge is absent or nothing was spoken."""
    rows, every = by_minute(known), [m for k in known for m in k["minutes"]]
    similar = [r["similarity"] for r in rows if r["similarity"] is not None]
    lost = [
        k["minutes"][0]["dnsmos"] - k["minutes"][-1]["dnsmos"]
        for k in known
        if k["minutes"] and k["minutes"][0]["dnsmos"] is not None
    ]
    bad = [m["silence"] > SILENT_SHARE or m["loop"] for m in every]
    figures: dict[str, Any] = {
        "prompts": len(known),
        "minutes": len(every),
        "similarity_worst_minute": min(similar, default=None),
        "similarity": _mean([m["similarity"] for m in every]),
        "dnsmos": _mean([m["dnsmos"] for m in every]),
        "dnsmos_lost": _mean(lost),
        "bad_minutes": _mean([float(b) for b in bad]),
        "silent_minutes": _mean([float(m["silence"] > SILENT_SHARE) for m in every]),
        "looping_minutes": _mean([float(m["loop"]) for m in every]),
        "repetition": _mean([m["repetition"] for m in every]),
    }
    figures["met"] = {
        name: None
        if figures[name] is None
        else bool(figures[name] >= bar if name == "similarity_worst_minute" else figures[name] <= bar)
        for name, bar in BARS.items()
    }
    return figures


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None and not math.isnan(v)]
    return float(np.mean(there)) if there else None


def _read(root: Path, known: Sequence[Row]) -> dict[str, Any]:
    """Transcripts of first and last minutes beside as many words of the held-out book, in order and shuffled."""
    said = [k["said"] for k in known if k["said"]]
    if not said:
        return {}
    judge = prose.reader(root)
    length = max(20, round(float(np.mean([len(words(t)) for pair in said for t in pair]))))
    pages = prose.real(root, len(said), length)
    return {
        name: asdict(judge.of(text))
        for name, text in (
            ("first minutes", [pair[0] for pair in said]),
            ("last minutes", [pair[1] for pair in said]),
            ("real text", pages),
            ("shuffled text", prose.shuffled(pages)),
        )
    }

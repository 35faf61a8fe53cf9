"""Stage ``acoustic evaluate``: held-out words in held-out voices, judged by ear-like models.

Each held-out utterance is spoken again from its tokens, once with 3 s of its own speaker as the prompt and
once with another held-out speaker's, never with the window's own audio. A judge that is not installed gives
null, with the reason (``recipes/judges.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ, TOKEN_FRAMES, TOKEN_RATE_HZ, TOKEN_SAMPLES
from speechssm.errors import SpeechSSMError
from speechssm.export.models.codec import Codec
from speechssm.perf.quality.judges import Judges
from speechssm.runtime.acoustic import SCHEDULES, Voice, WindowRow, decode_windows
from speechssm.runtime.random import acoustic_uniforms

from .. import data, places
from ..codec.train import load_best as load_codec
from ..judges import opened
from ..units import edit_distance
from . import prepare
from .graph import open_pass
from .prepare import Encoded
from .train import load_best

SECONDS = 8.0
"""At most this much of an utterance is spoken again at a time."""
WINDOWS = 6
"""Most windows of one recording."""
BARS = {
    "word_errors": 0.25,
    "similarity": 0.70,
    "towards_ceiling": 0.60,
    "ranked_first": 0.60,
    "dnsmos_lost": 0.4,
}
"""Issue 4's: the first and the last are upper limits, the others lower ones."""
UPPER = {"word_errors", "dnsmos_lost"}

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """An utterance (tokens and true codes of its window) and the speaker whose voice is asked for."""

    said: Encoded
    start: int
    tokens: int
    speaker: str
    voice: Voice


def references(encoded: Sequence[Encoded], prompt: int) -> dict[str, Encoded]:
    """Speaker -> the recording whose first ``prompt`` tokens are the speaker's prompt."""
    found: dict[str, Encoded] = {}
    for item in encoded:
        if len(item.tokens) >= 2 * prompt:
            found.setdefault(item.recording.speaker, item)
    return found


def trials(encoded: Sequence[Encoded], prompt: int, seed: int) -> list[Trial]:
    """Windows behind the first 3 s of each recording, in the speaker's own voice and in another's.

    Long readings give several. Recordings shorter than a prompt and 3 s are left out.
    """
    rng = np.random.default_rng(seed)
    voices = {
        name: Voice(item.tokens[:prompt], item.codes[:, : prompt * TOKEN_FRAMES])
        for name, item in references(encoded, prompt).items()
    }
    names = list(voices)
    longest = int(SECONDS * TOKEN_RATE_HZ)
    made = []
    for item in encoded:
        own = item.recording.speaker
        others = [n for n in names if n != own] or [own]
        for start in range(prompt, len(item.tokens) - prompt + 1, longest)[:WINDOWS]:
            length = min(len(item.tokens) - start, longest)
            for speaker in (own, others[int(rng.integers(len(others)))]):
                made.append(Trial(item, start, length, speaker, voices[speaker]))
    return made


def speak(trial: Trial, run: Any, codec: Codec, schedule: str, seed: int) -> Audio:
    """The trial's tokens in its voice: audio (n)."""
    said = trial.said.tokens[trial.start : trial.start + trial.tokens]
    nothing = np.zeros((trial.voice.codes.shape[0], 0), np.int64)
    window = WindowRow(trial.voice, said, nothing, partial(acoustic_uniforms, seed, trial.start))
    (codes,), failed = decode_windows(run, [window], SCHEDULES[schedule])
    if failed:
        raise SpeechSSMError("the acoustic stage's confidences are not finite: the weights are damaged")
    return decode(codec, codes)


@torch.no_grad()
def decode(codec: Codec, codes: NDArray[np.int64]) -> Audio:
    """codes (q,f) -> audio (n)."""
    audio: Audio = codec.decode(torch.from_numpy(codes)[None])[0][0].numpy()
    return audio


def run(
    root: Path, folder: Path | None = None, schedule: str = "default", most: int = 120, seed: int = 0
) -> None:
    """Print and save (``evaluation-<schedule>.json``) every figure, and a few recordings beside it."""
    model, codec = load_best(folder), load_codec()
    folder = folder or places.cache("acoustic")
    run_pass = open_pass(model)
    encoded = prepare.held_out(root, folder / "prepared")
    chosen = trials(encoded, model.shape.prompt_tokens, seed)
    chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(int)]
    real = [real_audio(t) for t in chosen]
    ceiling = [decode(codec, true_codes(t)) for t in chosen]
    made = [speak(t, run_pass, codec, schedule, seed + i) for i, t in enumerate(chosen)]
    listen = folder / f"listen-{schedule}"
    listen.mkdir(exist_ok=True)
    for i in range(0, len(chosen), max(1, len(chosen) // 12)):
        for kind, audio in (("real", real[i]), ("codec", ceiling[i]), ("made", made[i])):
            soundfile.write(listen / f"{i:03d}-{chosen[i].speaker}-{kind}.wav", audio, SAMPLE_RATE_HZ)
    figures: dict[str, Any] = {"schedule": schedule, "utterances": len(chosen)}
    prompt = model.shape.prompt_tokens
    judges = opened()
    figures |= voices(chosen, made, references(encoded, prompt), prompt, judges)
    figures |= words(real, ceiling, made, judges)
    figures |= naturalness(ceiling, made, judges)
    report(figures)
    places.write_json(folder / f"evaluation-{schedule}.json", figures)


def true_codes(trial: Trial) -> NDArray[np.int64]:
    """The utterance's own codes (q,f)."""
    first, last = (TOKEN_FRAMES * at for at in (trial.start, trial.start + trial.tokens))
    return trial.said.codes[:, first:last]


def real_audio(trial: Trial) -> Audio:
    """The utterance as recorded (n)."""
    return recorded(trial.said, trial.start, trial.tokens)


def recorded(item: Encoded, start: int, tokens: int) -> Audio:
    """``tokens`` of a recording from token ``start`` on, as audio (n)."""
    part = data.audio(item.recording)[start * TOKEN_SAMPLES : (start + tokens) * TOKEN_SAMPLES]
    return part.astype(np.float32) / 32768.0


def voices(
    chosen: Sequence[Trial],
    made: Sequence[Audio],
    known: Mapping[str, Encoded],
    prompt: int,
    judges: Judges,
) -> dict[str, Any]:
    """Similarity to the prompt asked for, its share of the way from a stranger to the speaker, and its rank.

    ``ceiling`` is the similarity of real utterances to their own speaker's prompt, ``stranger`` that to
    others'. No prompt overlaps the utterance it is compared with.
    """
    listen = judges.get("speaker")
    if listen is None:
        return {"similarity": None, "similarity_missing": judges.reason("speaker")}
    names = list(known)
    prompts = np.stack([listen(recorded(item, 0, prompt)) for item in known.values()])
    scores = np.stack([listen(audio) for audio in made]) @ prompts.T
    truth = np.stack([listen(real_audio(t)) for t in chosen]) @ prompts.T
    rows = np.arange(len(chosen))
    wanted = np.array([names.index(t.speaker) for t in chosen])
    owner = np.array([names.index(t.said.recording.speaker) for t in chosen])
    others = np.arange(len(names)) != owner[:, None]
    similarity, ceiling = float(scores[rows, wanted].mean()), float(truth[rows, owner].mean())
    stranger = float(truth[others].mean()) if others.any() else float("nan")
    return {
        "similarity": similarity,
        "similarity_ceiling": ceiling,
        "similarity_stranger": stranger,
        "towards_ceiling": (similarity - stranger) / (ceiling - stranger),
        "ranked_first": float((scores.argmax(1) == wanted).mean()),
        "ranked_first_ceiling": float((truth.argmax(1) == owner).mean()),
        "speakers": len(names),
    }


def words(
    real: Sequence[Audio], ceiling: Sequence[Audio], made: Sequence[Audio], judges: Judges
) -> dict[str, Any]:
    """Word errors of codec and made speech against Whisper's transcript of the original."""
    hear = judges.get("asr")
    if hear is None:
        return {"word_errors": None, "word_errors_missing": judges.reason("asr")}

    def heard(audio: Audio) -> list[str]:
        return "".join(c if c.isalnum() or c == "'" else " " for c in hear(audio).lower()).split()

    truth = [heard(a) for a in real]
    return {
        "word_errors": word_errors(truth, [heard(a) for a in made]),
        "word_errors_codec": word_errors(truth, [heard(a) for a in ceiling]),
        "words": sum(map(len, truth)),
    }


def word_errors(truth: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> float:
    """Substitutions, insertions and deletions over the words that were to be heard."""
    ids: dict[str, int] = {}
    rows = [[ids.setdefault(w, len(ids)) for w in line] for line in [*truth, *heard]]
    errors = sum(edit_distance(a, b) for a, b in zip(rows[: len(truth)], rows[len(truth) :], strict=True))
    return errors / max(1, sum(map(len, truth)))


def naturalness(ceiling: Sequence[Audio], made: Sequence[Audio], judges: Judges) -> dict[str, Any]:
    """DNSMOS of made and codec speech."""
    judge = judges.get("dnsmos")
    if judge is None:
        return {"dnsmos": None, "dnsmos_missing": judges.reason("dnsmos")}
    ours, best = (float(np.mean([judge(a) for a in some])) for some in (made, ceiling))
    return {"dnsmos": ours, "dnsmos_codec": best, "dnsmos_lost": best - ours}


def report(figures: dict[str, Any]) -> None:
    """Every figure, and each bar met or missed."""
    for name, value in figures.items():
        bar = BARS.get(name)
        line = f"{name:22} {value:.3f}" if isinstance(value, float) else f"{name:22} {value}"
        if bar is not None and isinstance(value, float):
            met = value <= bar if name in UPPER else value >= bar
            line += f"   bar {bar}: {'met' if met else 'missed'}"
        print(line)

"""Words of long speech: coherence with its beginning, perplexity, and judging two continuations."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechssm.errors import SettingsError

STEP = 100
"""Words of one step of SC-L (the paper's Figure 5; the number is this project's reading of it)."""
PATIENCE_S = 600.0
"""Longest a judge may think."""


def coherence(
    prompt: str, transcript: str, embed: Callable[[str], NDArray[np.float32]], step: int = STEP
) -> list[tuple[int, float]]:
    """SC-L: words said before a step's end, and the similarity of the step to the prompt.

    Steps are of ``step`` words; a rest shorter than half of one is left out.
    """
    words = transcript.split()
    start = embed(prompt)
    found = []
    for at in range(0, len(words), step):
        part = words[at : at + step]
        if len(part) >= step / 2:
            found.append((at + len(part), float(np.dot(start, embed(" ".join(part))))))
    return found


def perplexity(texts: Sequence[str], nats: Callable[[str], tuple[float, int]]) -> float:
    """Of all tokens of ``texts`` together; NaN when there are none."""
    pairs = [nats(text) for text in texts if text.strip()]
    count = sum(n for _, n in pairs)
    return math.exp(sum(total for total, _ in pairs) / count) if count else math.nan


@dataclass(frozen=True)
class Verdicts:
    """Of pairs judged in both orders: wins of the first text, wins of the second, and disagreement or ties."""

    first: int
    second: int
    undecided: int

    @property
    def win_share(self) -> float:
        """Share of pairs the first text won; an undecided pair is half a win."""
        return (self.first + self.undecided / 2) / max(1, self.first + self.second + self.undecided)


def judge_pairs(command: str, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> Verdicts:
    """Ask ``command`` about each pair twice, the order exchanged: only a judge who says the same twice decides.

    The command reads one JSON object {"prompt", "a", "b"} on standard input and prints a word that begins with
    ``a`` or ``b``, or anything else for a tie. Raises SettingsError when it cannot be run or fails.
    """
    counts = [0, 0, 0]
    for prompt, one, two in zip(prompts, a, b, strict=True):
        answers = (_ask(command, prompt, one, two), _ask(command, prompt, two, one))
        counts[0 if answers == ("a", "b") else 1 if answers == ("b", "a") else 2] += 1
    return Verdicts(*counts)


def _ask(command: str, prompt: str, a: str, b: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), input=json.dumps({"prompt": prompt, "a": a, "b": b}), text=True,
            capture_output=True, timeout=PATIENCE_S, check=True,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SettingsError(f"the judge {command!r} failed: {error}") from error
    word = done.stdout.strip().lower()[:1]
    return word if word in ("a", "b") else "tie"

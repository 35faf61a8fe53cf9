"""Join kathleen sentences into ``examples/prompt.flac``: ``python examples/make_prompt.py DATA``.

The sentences are held out: their arctic numbers are divisible by 10 (``recipes/splits.py``), so no voice
trained in this repository has heard them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16_000
SECONDS = 10.0
SENTENCES = (
    "arctic_b0050_1592700253",  # All this day Gregson remained in the cabin.
    "arctic_a0090_1592746381",  # The singing voice approached rapidly.
    "arctic_b0040_1592700536",  # The thought set his blood tingling.
    "arctic_b0130_1592698721",  # She saw the answer in his face.
)
QUIET = 0.01
"""Samples below this part of full scale, at either end of a sentence, are its silence."""


def spoken(path: Path) -> np.ndarray:
    """The recording (n) without the silence around it; 60 ms are kept on each side."""
    audio, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == SAMPLE_RATE_HZ
    loud = np.flatnonzero(np.abs(audio) > QUIET)
    keep = round(0.06 * SAMPLE_RATE_HZ)
    return audio[max(0, loud[0] - keep) : loud[-1] + keep]


def main() -> None:
    """Write the prompt beside this file."""
    folder = Path(sys.argv[1]) / "kathleen"
    sentences = [spoken(folder / f"{stem}.ogg") for stem in SENTENCES]
    left = round(SECONDS * SAMPLE_RATE_HZ) - sum(map(len, sentences))
    print(f"{left / SAMPLE_RATE_HZ:.2f} s are left for {len(sentences) - 1} pauses")
    # The recording ends with its last word, as a prompt that is to be continued does.
    pause = np.zeros(left // (len(sentences) - 1), np.float32)
    pieces = [sentences[0]]
    for sentence in sentences[1:]:
        pieces += [pause, sentence]
    audio = np.concatenate(pieces)
    audio = np.concatenate([audio, np.zeros(round(SECONDS * SAMPLE_RATE_HZ) - len(audio), np.float32)])
    target = Path(__file__).parent / "prompt.flac"
    soundfile.write(target, audio, SAMPLE_RATE_HZ, subtype="PCM_16")
    print(f"{target}: {len(audio) / SAMPLE_RATE_HZ} s, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""A session inside a program of your own: ``python examples/embed.py BUNDLE [FOLDER]``.

Streams four seconds, puts the session away half way through, and goes on twice: from the file, sample for
sample as if nothing had happened, and as a fork that says something else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import speechssm

PROMPT = Path(__file__).parent / "prompt.flac"


def main(bundle: str, folder: str = "out") -> None:
    """Run the example; files go to ``folder``."""
    saved = Path(folder) / "half-way.safetensors"
    model = speechssm.load(bundle)
    print(
        f"one session keeps {model.session_bytes / 1024:.1f} KiB of language model state, however long it runs"
    )

    with model.open(PROMPT, seed=7, ramp=True) as session:
        first = np.concatenate(list(session.stream(seconds=2)))
        session.snapshot(saved)
        fork = session.fork(seed=8)
        rest = np.concatenate(list(session.stream(seconds=2)))

    with model.restore(saved) as restored:
        again = np.concatenate(list(restored.stream(seconds=2)))
    with fork:
        other = np.concatenate(list(fork.stream(seconds=2)))

    print(
        f"{len(first)} samples, then {len(rest)}: {session.stats.tokens} tokens in {session.stats.windows} windows"
    )
    print(f"restored session says the same: {np.array_equal(rest, again)}")
    print(f"fork with another seed says the same: {np.array_equal(rest, other)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Everything that training needs of the prepared recordings in one file, for a machine that has none of them.

The shape of the file: ``tokens`` (n) and ``codes`` (q, 2n) of all recordings end to end as int16, ``voices``
(r,256), ``lengths`` (r), and who they are as JSON in the header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speechssm.axes import TOKEN_FRAMES
from speechssm.errors import SpeechSSMError

from .. import data, places
from .prepare import Encoded


@dataclass(frozen=True)
class Examples:
    """What is trained on, and the readers set aside to choose checkpoints by."""

    training: list[Encoded]
    validation: list[Encoded]


def write(path: Path, examples: Examples) -> None:
    """Both lists into one file, whole or not at all."""
    every = [*examples.training, *examples.validation]
    about = [[e.recording.corpus, e.recording.stem, e.recording.speaker, e.speed] for e in every]
    arrays: dict[str, np.ndarray] = {
        "tokens": np.concatenate([e.tokens for e in every]).astype(np.int16),
        "codes": np.concatenate([e.codes for e in every], axis=1).astype(np.int16),
        "voices": np.stack([e.voice for e in every]),
        "lengths": np.array([len(e.tokens) for e in every]),
    }
    header = {"recordings": json.dumps(about), "training": str(len(examples.training))}
    with places.partial(path) as temporary:
        save_file(arrays, temporary, header)


def read(path: Path) -> Examples:
    """What :func:`write` wrote. Raises SpeechSSMError when the file is not such a one."""
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in ("tokens", "codes", "voices", "lengths")}
        about, training = json.loads(header["recordings"]), int(header["training"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SpeechSSMError(
            f"{path} does not hold packed recordings ({error}): make it with 'pack'"
        ) from error
    ends = np.cumsum(arrays["lengths"])[:-1]
    tokens = np.split(arrays["tokens"].astype(np.int64), ends)
    codes = np.split(arrays["codes"].astype(np.int64), ends * TOKEN_FRAMES, axis=1)
    found = [
        Encoded(data.Recording(corpus, stem, speaker, Path()), speed, *held)
        for (corpus, stem, speaker, speed), *held in zip(about, tokens, codes, arrays["voices"], strict=True)
    ]
    return Examples(found[:training], found[training:])

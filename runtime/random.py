"""Counter-based uniforms: a number depends on (seed, stage, place) alone, never on what was drawn before.

So one seed gives the same speech alone, in a batch, restored from a snapshot or moved to another
machine, and nothing about random numbers needs saving. The generator is Philox4x64-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) as the paper defines it: any implementation of
it makes the same numbers from ::

    key     = (seed, stage)
    counter = (i // 4, where, iteration, 0)       word i % 4 of the four it gives is number i
    uniform = (word >> 40) * 2^-24

numpy promises that the raw words of its Philox never change, and a test pins them.
"""

import math
import operator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from speechssm.errors import SettingsError

UNIFORM_BITS = 24
"""Uniforms are multiples of 2^-24: every one is exact in float32, and below 1."""
_WORD = 1 << 64


class Stage(IntEnum):
    """Who draws. The values are part of every stream ever made: add new ones, change none."""

    LM = 1
    """One number per generated token, numbered from 0."""
    ACOUSTIC = 2
    """Blocks of numbers per acoustic call and iteration."""


def check_seed(seed: int) -> int:
    """Return the seed as a plain int, or refuse it.

    Raises:
        SettingsError: it is not an integer of 64 bits, 0 to 2^64 - 1.
    """
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if isinstance(seed, bool) or not 0 <= value < _WORD:
        raise SettingsError(f"the seed is {seed!r}; give an integer from 0 to 2^64 - 1.")
    return value


def uniforms(seed: int, stage: Stage, index: int, count: int) -> NDArray[np.float32]:
    """Numbers ``index .. index + count`` of a stage: float32 (count), in [0, 1).

    Any index costs the same, so a step draws a block ahead and takes slices of it.

    Raises:
        SettingsError: the seed, the index or the count is out of range.
    """
    return _draw(seed, stage, index, count, where=0, iteration=0)


def acoustic_uniforms(seed: int, start: int, iteration: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers of one iteration of the acoustic call whose window starts at token ``start``.

    Returns float32 of ``shape`` in [0, 1), filled row by row. The steps of a ramp share a window and so
    its numbers: a withheld frame is asked again under the same draw.

    Raises:
        SettingsError: the seed, the start or the iteration is out of range.
    """
    return _draw(seed, Stage.ACOUSTIC, 0, math.prod(shape), start, iteration).reshape(shape)


def _draw(seed: int, stage: Stage, index: int, count: int, where: int, iteration: int) -> NDArray[np.float32]:
    key = check_seed(seed) | int(Stage(stage)) << 64
    for name, value in (("index", index), ("count", count), ("start", where), ("iteration", iteration)):
        if not 0 <= value < _WORD:
            raise SettingsError(f"the {name} of a random number is {value}; it must be 0 to 2^64 - 1.")
    block, skip = divmod(int(index), 4)
    counter = block | int(where) << 64 | int(iteration) << 128
    # numpy steps the counter before each block of four, the definition after it.
    generator = np.random.Philox(key=key, counter=(counter - 1) % (1 << 256))
    words = generator.random_raw(skip + int(count))[skip:]
    return (words >> np.uint64(64 - UNIFORM_BITS)).astype(np.float32) * np.float32(2.0**-UNIFORM_BITS)

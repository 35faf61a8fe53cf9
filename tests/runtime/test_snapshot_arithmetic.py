"""S6, by arithmetic: frozen at any moment a stream goes on as it would have; of no moment, it is refused.

No engine: the acoustic stage and the codec are integer functions, so that thousands of moments cost seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssm.axes import FRAME_SAMPLES, TOKEN_FRAMES, TOKEN_SAMPLES
from speechssm.bundle import StateTensor
from speechssm.errors import SnapshotError
from speechssm.runtime.acoustic import Voice
from speechssm.runtime.frozen import Frozen
from speechssm.runtime.lm import SavedRow
from speechssm.runtime.session_settings import SessionSettings
from speechssm.runtime.settings import SamplerSettings
from speechssm.runtime.snapshot import read_snapshot, write_snapshot
from speechssm.runtime.stages import Stages
from speechssm.runtime.stream import Stream, Window
from speechssm.runtime.windows import SPEAKER_TOKENS, WindowSettings

LEVELS, CODES, VOCAB, PROMPT = 2, 7, 31, 25
DIGEST = "d" * 64
CARRIED = (StateTensor(name="seen", kind="tail", shape=(1,)),)


class Decoder:
    """A codec graph whose every sample depends on all codes so far, so that a lost frame is heard."""

    def call(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        assert list(outputs) == ["audio", "out_seen"]
        frames, seen = inputs["codes"][0].sum(axis=0), float(inputs["in_seen"][0, 0])
        audio = []
        for code in frames.tolist():
            seen = (5 * seen + code + 1) % 1009
            audio.append(seen)
        samples = np.repeat(np.array(audio, np.float32), FRAME_SAMPLES)[None]
        return [samples, np.array([[seen]], np.float32)]


def stages(windows: WindowSettings) -> Stages:
    lm: Any = SimpleNamespace(vocab=VOCAB, k_max=VOCAB)
    graphs: Any = {"codec_decode": Decoder()}.__getitem__
    return Stages(lm, LEVELS, CODES, windows.buckets, CARRIED, DIGEST, graphs)


def decoded(window: Window) -> np.ndarray:
    """Codes (q,f) that depend on where the window starts; those already sent stay."""
    frames = np.repeat(window.row.tokens, TOKEN_FRAMES) + window.call.start
    codes = (frames[None] * np.arange(3, 3 + LEVELS)[:, None]) % CODES
    codes[:, : window.row.sent.shape[1]] = window.row.sent
    return codes


def row_of(stream: Stream) -> SavedRow:
    """The language model's row that belongs to what the stream has had."""
    state = {"position": np.array(stream.position - 1, np.int64)}
    return SavedRow(state, 3, stream.stats.tokens, 9, SamplerSettings())


def started(windows: WindowSettings) -> Stream:
    voice = Voice(np.zeros(SPEAKER_TOKENS, np.int64), np.zeros((LEVELS, 2 * SPEAKER_TOKENS), np.int64))
    stream = Stream(stages(windows), SessionSettings(seed=9, windows=windows), voice)
    stream.position = PROMPT
    return stream


def steps(stream: Stream, lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """Do everything there is to do, one thing at a time; yields what can be heard after it, often nothing.

    ``lengths`` are samples in all, growing: each is asked for when the one before it is given out.
    """
    for asked in lengths:
        if asked <= stream.stats.samples:
            continue
        stream.asked = asked
        while not stream.done:
            if stream.has_audio:
                yield stream.next_piece()
            elif stream.missing():
                stream.push_token((len(stream.tokens) * 17 + 5) % VOCAB)
                yield np.empty(0, np.float32)
            else:
                window = stream.next_window()
                assert window is not None
                stream.push_codes(window.call, decoded(window))
                yield np.empty(0, np.float32)


@st.composite
def geometries(draw: st.DrawFn) -> WindowSettings:
    window = draw(st.one_of(st.integers(1, 12), st.integers(40, 130)))
    return WindowSettings(window, draw(st.integers(0, window - 1)), draw(st.booleans()))


LENGTHS = st.lists(st.integers(1, 150 * TOKEN_SAMPLES), min_size=1, max_size=3).map(sorted)
CHANCE = st.randoms(use_true_random=False)


def at_some_moment(
    windows: WindowSettings, lengths: list[int], chance: random.Random
) -> tuple[Stream, list[np.ndarray], list[np.ndarray]]:
    """A stream in the middle of its work, what was heard until then, and what must be heard after it."""
    whole = list(steps(started(windows), lengths))
    cut = chance.randrange(len(whole) + 1)
    stream = started(windows)
    heard = [piece for _, piece in zip(range(cut), steps(stream, lengths), strict=False)]
    assert [p.tobytes() for p in heard] == [p.tobytes() for p in whole[:cut]]
    return stream, heard, whole[cut:]


def thawed(windows: WindowSettings, frozen: Frozen) -> Stream:
    return Stream.thaw(stages(windows), frozen)[0]


def heard_from(stream: Stream, lengths: Sequence[int]) -> bytes:
    return b"".join(piece.tobytes() for piece in steps(stream, lengths))


@given(geometries(), LENGTHS, CHANCE)
@settings(max_examples=30, deadline=None)
def test_s6_frozen_at_any_moment_it_goes_on(
    windows: WindowSettings, lengths: list[int], chance: random.Random
) -> None:
    stream, _, rest = at_some_moment(windows, lengths, chance)
    expected = b"".join(piece.tobytes() for piece in rest)
    frozen = stream.freeze(row_of(stream))
    twin, second = thawed(windows, frozen), thawed(windows, frozen)
    assert (twin.made, twin.total, twin.complete) == (stream.made, stream.total, stream.complete)
    assert twin.missing() == stream.missing()
    assert heard_from(stream, lengths) == expected
    # Whatever the first one does, the copy is its own.
    assert heard_from(twin, lengths) == expected
    again = second.freeze(row_of(second))
    assert again.meta == frozen.meta
    assert all(again.tensors[name].tobytes() == array.tobytes() for name, array in frozen.tensors.items())


@given(geometries(), LENGTHS, CHANCE)
@settings(max_examples=30, deadline=None)
def test_what_was_not_passed_on_is_given_out_again(
    windows: WindowSettings, lengths: list[int], chance: random.Random
) -> None:
    """A service's reader may not have taken the last samples yet."""
    stream, heard, rest = at_some_moment(windows, lengths, chance)
    given_out = np.concatenate([np.empty(0, np.float32), *heard])
    count = chance.randrange(min(len(given_out), 5_000) + 1)
    unread = given_out[len(given_out) - count :]
    twin = thawed(windows, stream.freeze(row_of(stream), unread))
    expected = unread.tobytes() + b"".join(piece.tobytes() for piece in rest)
    assert heard_from(twin, lengths) == expected


NUMBERS = (
    "drawn",
    "tokens",
    "position",
    "samples",
    "lm.position",
    "tokens.start",
    "stitch.place",
    "stitch.both",
)
PARTS = ("tokens.tail", "stitch.codes", "tail.pending", "tail.held")


@given(geometries(), LENGTHS, CHANCE, st.sampled_from(NUMBERS), st.integers(-700, 700).filter(bool))
@settings(max_examples=60, deadline=None)
def test_one_number_that_is_off_is_refused(
    windows: WindowSettings, lengths: list[int], chance: random.Random, name: str, by: int
) -> None:
    """Every count of a snapshot follows from the others: none can be bent alone, by however little."""
    stream, _, _ = at_some_moment(windows, lengths, chance)
    frozen = stream.freeze(row_of(stream))
    if name in frozen.meta:
        bent = replace(frozen, meta=frozen.meta | {name: frozen.meta[name] + by})
    else:
        key = name.replace("both", "place")
        array = frozen.tensors[key].copy()
        if name == "stitch.place":
            array[chance.randrange(2)] += by
        else:
            array += by
        bent = replace(frozen, tensors=frozen.tensors | {key: array})
    with pytest.raises(SnapshotError):
        thawed(windows, bent)


@given(geometries(), LENGTHS, CHANCE, st.sampled_from(PARTS), st.booleans())
@settings(max_examples=40, deadline=None)
def test_one_element_too_many_or_too_few_is_refused(
    windows: WindowSettings, lengths: list[int], chance: random.Random, name: str, more: bool
) -> None:
    stream, _, _ = at_some_moment(windows, lengths, chance)
    frozen = stream.freeze(row_of(stream))
    array = frozen.tensors[name]
    if more:
        array = np.concatenate([array, np.zeros((*array.shape[:-1], 1), array.dtype)], axis=-1)
    elif array.shape[-1]:
        array = array[..., :-1].copy()
    else:
        return
    with pytest.raises(SnapshotError):
        thawed(windows, replace(frozen, tensors=frozen.tensors | {name: array}))


@given(geometries(), LENGTHS, CHANCE)
@settings(max_examples=15, deadline=None)
def test_a_file_holds_all_of_it(
    tmp_path_factory: pytest.TempPathFactory,
    windows: WindowSettings,
    lengths: list[int],
    chance: random.Random,
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "arithmetic.safetensors"
    stream, _, _ = at_some_moment(windows, lengths, chance)
    frozen = stream.freeze(row_of(stream))
    read = read_snapshot(write_snapshot(path, frozen, DIGEST), DIGEST)
    assert read.meta["acoustic"].pop("iterations") == list(frozen.meta["acoustic"]["iterations"])
    assert read.meta == frozen.meta | {"acoustic": read.meta["acoustic"]}
    assert read.tensors.keys() == frozen.tensors.keys()
    for name, array in frozen.tensors.items():
        found = read.tensors[name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert not list(path.parent.glob(".arithmetic*"))

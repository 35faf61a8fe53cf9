"""The codec's two graphs: encode a speaker prompt, decode an endless row of frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle import StateTensor
from speechssm.engines.protocol import Graph
from speechssm.errors import SessionFailed

from .state import RowState, check_row

SLICE_FRAMES = 100
"""Frames decoded at a time (2 s): the first samples leave early and buffers stay small."""


class CodecStream:
    """Streaming decoder of one session. Any chunking of the frames gives the same samples (A1)."""

    def __init__(self, graph: Graph, schema: Sequence[StateTensor]) -> None:
        self._graph = graph
        self._schema = tuple(schema)
        self._state: RowState = {s.name: np.zeros(s.shape, s.dtype) for s in self._schema}

    def decode(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """codes (q,f) -> float32 audio, at most 2 s at a time, 320 samples a frame.

        Raises SessionFailed, and keeps its state, when the audio is not finite.
        """
        names = ["audio", *(f"out_{s.name}" for s in self._schema)]
        for start in range(0, codes.shape[1], SLICE_FRAMES):
            part = np.ascontiguousarray(codes[None, :, start : start + SLICE_FRAMES])
            inputs = {"codes": part, **{f"in_{name}": array[None] for name, array in self._state.items()}}
            audio, *state = self._graph.call(inputs, names)
            if audio.shape[1] != part.shape[2] * FRAME_SAMPLES or not np.isfinite(audio).all():
                raise SessionFailed(
                    "the codec made audio of a wrong length or that is not finite: the session ends here; "
                    "check the bundle with 'speechssm verify'"
                )
            self._state = {s.name: array[0] for s, array in zip(self._schema, state, strict=True)}
            yield audio[0]

    def snapshot(self) -> RowState:
        """The carried state."""
        return {name: array.copy() for name, array in self._state.items()}

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Go on from a snapshot. Raises SnapshotError when it is of another codec."""
        check_row(self._schema, saved)
        self._state = {name: array.copy() for name, array in saved.items()}


def encode(graph: Graph, audio: np.ndarray) -> np.ndarray:
    """audio (n), n a multiple of 320 -> codes int64 (q,f)."""
    assert len(audio) % FRAME_SAMPLES == 0
    (codes,) = graph.call({"audio": np.ascontiguousarray(audio[None], np.float32)}, ["codes"])
    result: np.ndarray = codes[0]
    return result

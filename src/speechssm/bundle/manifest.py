"""The manifest: everything a reader must know of a bundle before it opens anything else in it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from speechssm import axes

from . import limits
from .shapes import LMShape
from .shapes.base import Shape
from .shapes.ready import AcousticForm, CodecForm, TokenizerForm
from .state import StateTensor, state_bytes

FORMAT: Final = "speechssm-bundle"
VERSION: Final = 1
"""Version this code writes and reads. A reader refuses any other."""
MANIFEST = "manifest.json"

PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
"""File names in a bundle: no separator, no leading dot, so no way out of the folder."""
WEIGHTS_SUFFIX = ".safetensors"
"""Ending of a weight file."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a text is not printable on one line")
    return text


Text = Annotated[str, Field(max_length=limits.TEXT), AfterValidator(_printable)]
"""Text that is shown to people."""
FileName = Annotated[str, Field(pattern=PLAIN_NAME.pattern)]
# ONNX Runtime opens other endings as other formats.
GraphFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,122}\.onnx$")]
WeightFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,115}\.safetensors$")]
GraphName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Axis = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,15}$")] | Annotated[int, Field(ge=0, le=limits.SIZE)]
DType = Literal["float32", "float16", "int64", "int32", "int8", "bool"]
Storage = Literal["float32", "float16", "bfloat16", "int8", "int4", "dynamic_int8", "qdq_int8", "qdq_fp8"]


class FileEntry(Shape):
    """Digest and size of one file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: NonNegativeInt


class Value(Shape):
    """One input or output of a graph; an axis is a letter of :mod:`speechssm.axes` or a size."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    dtype: DType
    axes: Annotated[tuple[Axis, ...], Field(max_length=limits.RANK)]


class GraphEntry(Shape):
    """One graph: its file, the weight files it points into, and its signature."""

    file: GraphFile
    weights: tuple[WeightFile, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    state: tuple[StateTensor, ...] = ()

    @model_validator(mode="after")
    def _state_is_paired(self) -> Self:
        ins = {v.name: v for v in self.inputs}
        outs = {v.name: v for v in self.outputs}
        for s in self.state:
            wanted = (s.dtype, s.axes)
            for value in (ins.get(f"in_{s.name}"), outs.get(f"out_{s.name}")):
                if value is None or (value.dtype, value.axes) != wanted:
                    raise ValueError(f"state tensor {s.name} has no matching input and output")
        if len(ins) != len(self.inputs) or len(outs) != len(self.outputs):
            raise ValueError("an input or output name appears twice")
        if len({s.name for s in self.state}) != len(self.state):
            raise ValueError("a state tensor appears twice")
        if any(size < 1 for s in self.state for size in s.shape):
            raise ValueError("a state tensor has a size below 1")
        if state_bytes(self.state) > limits.STATE_BYTES:
            raise ValueError(f"the state of one row takes more than {limits.STATE_BYTES} bytes")
        return self


class Rates(Shape):
    """Rates and sizes every part of a bundle shares."""

    sample_rate_hz: Literal[16_000] = axes.SAMPLE_RATE_HZ
    token_rate_hz: Literal[25] = axes.TOKEN_RATE_HZ
    frame_rate_hz: Literal[50] = axes.FRAME_RATE_HZ


class Windows(Shape):
    """Windowed tokenizing and synthesis (paper section 3.3): 30 s windows, 4 s overlap, 3 s speaker prefix."""

    window_tokens: PositiveInt = 750
    overlap_tokens: NonNegativeInt = 100
    prefix_tokens: PositiveInt = 75
    buckets: tuple[PositiveInt, ...] = (50, 100, 200, 400, 750)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.window_tokens > limits.WINDOW_TOKENS:
            raise ValueError(f"window_tokens is more than {limits.WINDOW_TOKENS}")
        if self.overlap_tokens >= self.window_tokens:
            raise ValueError("overlap_tokens is not below window_tokens")
        if list(self.buckets) != sorted(set(self.buckets)) or self.window_tokens != max(
            self.buckets, default=0
        ):
            raise ValueError("buckets do not grow up to window_tokens")
        return self


class LMPart(Shape):
    """The language model and the limits its sampler and watchdog keep."""

    shape: LMShape
    storage: Storage
    k_max: PositiveInt
    lru_limit: Annotated[PositiveFloat, Field(allow_inf_nan=False)]


class TokenizerPart(Shape):
    """The semantic tokenizer."""

    shape: TokenizerForm
    storage: Storage


class AcousticPart(Shape):
    """The acoustic stage."""

    shape: AcousticForm
    storage: Storage


class CodecPart(Shape):
    """The codec."""

    shape: CodecForm
    storage: Storage


class Manifest(Shape):
    """A bundle's table of contents. Unknown keys are refused."""

    format: Literal["speechssm-bundle"] = FORMAT
    version: Literal[1] = VERSION
    name: Text
    about: Text
    seeded: bool
    """True when the weights are random: such a bundle makes noise, not speech."""
    exporter: Text
    opset: PositiveInt
    rates: Rates = Rates()
    windows: Windows = Windows()
    lm: LMPart
    tokenizer: TokenizerPart | None = None
    acoustic: AcousticPart | None = None
    codec: CodecPart | None = None
    graphs: dict[GraphName, GraphEntry]
    files: dict[FileName, FileEntry]
    licences: tuple[Text, ...] = ()
    parity: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.files) > limits.FILES or len(self.graphs) > limits.FILES:
            raise ValueError(f"more than {limits.FILES} files or graphs")
        for part in (self.lm, self.tokenizer, self.acoustic, self.codec):
            _check_sizes(part)
        for name, graph in self.graphs.items():
            for file in (graph.file, *graph.weights):
                if file not in self.files:
                    raise ValueError(f"graph {name} uses {file}, which is not listed under files")
        missing = [g for g in self.needed_graphs() if g not in self.graphs]
        if missing:
            raise ValueError(f"graphs are missing: {', '.join(missing)}")
        if self.lm.k_max > self.lm.shape.vocab:
            raise ValueError("k_max is larger than the vocabulary")
        if _by_name(self.graphs["lm_step"].state) != _by_name(self.graphs["lm_chunk"].state):
            raise ValueError("lm_step and lm_chunk carry different states")
        if self.acoustic:
            acoustic, windows = self.acoustic.shape, self.windows
            if acoustic.levels > limits.LEVELS:
                raise ValueError(f"more than {limits.LEVELS} codec levels")
            if windows.window_tokens > acoustic.max_tokens or windows.prefix_tokens != acoustic.prompt_tokens:
                raise ValueError("windows and acoustic stage have different lengths")
        if self.tokenizer and self.acoustic and self.codec:
            if not self.lm.shape.vocab == self.tokenizer.shape.vocab == self.acoustic.shape.vocab:
                raise ValueError("language model, tokenizer and acoustic stage have different vocabularies")
            mine, theirs = self.acoustic.shape, self.codec.shape
            if (mine.levels, mine.codes) != (theirs.levels, theirs.codes):
                raise ValueError("acoustic stage and codec have different levels or codes")
        return self

    def needed_graphs(self) -> tuple[str, ...]:
        """Names of the graphs the parts present must have."""
        names = ["lm_step", "lm_chunk"]
        if self.tokenizer:
            names.append("tokenizer")
        if self.acoustic:
            names += ["acoustic_prompt", "acoustic"]
        if self.codec:
            names += ["codec_encode", "codec_decode"]
        return tuple(names)

    @property
    def speaks(self) -> bool:
        """True when all four parts are there, so that audio goes in and out."""
        return bool(self.tokenizer and self.acoustic and self.codec)


def _check_sizes(part: LMPart | TokenizerPart | AcousticPart | CodecPart | None) -> None:
    for name, value in part.shape if part else ():
        if isinstance(value, int) and value > limits.SIZE:
            raise ValueError(f"{name} is {value}, more than {limits.SIZE}")


def _by_name(state: tuple[StateTensor, ...]) -> dict[str, StateTensor]:
    return {s.name: s for s in state}


def is_plain(name: str) -> bool:
    """True when ``name`` is a file name that cannot leave its folder."""
    return bool(PLAIN_NAME.fullmatch(name)) and len(PurePosixPath(name).parts) == 1

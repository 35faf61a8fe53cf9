"""A ready acoustic stage: one ONNX file that runs one pass of SoundStorm over a prompt and a window.

What is taken (names are free, the types and axes tell; q is fixed in the file):

* tokens (b,t), codes (b,q,f), level () of int64, known (b,q,f) bool, temperature () and noise (b,f) float32,
  the speaker prompt's 75 tokens and 150 frames in front of the window's, f = 2t;
* codes_out (b,f) int64 and confidence (b,f) float32, of all frames.

:mod:`speechssm.export.graphs.acoustic` says what each means. A bundle reads the prompt in a graph of its own:
here ``acoustic_prompt`` only hands tokens and codes on, and ``acoustic`` puts them in front. Two promises are
made true around the file: codes that are not known are read as 0, and known ones are given back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from speechssm.axes import TOKEN_FRAMES
from speechssm.bundle.shapes import ReadyAcousticShape
from speechssm.bundle.state import StateTensor
from speechssm.errors import ExportError

from ..graphs.builder import BOOL, FLOAT, INT64, GraphBuilder
from .model_file import as_graph, axes_of, inputs_of, opset_of, read_model, splice
from .part import ReadyPart, Writable

PART = "acoustic"
_INPUTS: dict[str, tuple[int, int]] = {
    "tokens": (INT64, 2),
    "codes": (INT64, 3),
    "known": (BOOL, 3),
    "level": (INT64, 0),
    "temperature": (FLOAT, 0),
    "noise": (FLOAT, 2),
}
_OUTPUTS: dict[str, tuple[int, int]] = {"codes_out": (INT64, 2), "confidence": (FLOAT, 2)}
_LETTERS = {0: "()", 2: "(b,t) or (b,f)", 3: "(b,q,f)"}


def ready_acoustic(path: Path, vocab: int, codes: int) -> tuple[ReadyAcousticShape, ReadyPart]:
    """The ONNX file at ``path`` as the part ``acoustic`` for ``vocab`` tokens and ``codes`` (c) a level.

    Raises ExportError for a file that is damaged or whose inputs and outputs are not those above. What it
    computes is checked when the bundle's graph first runs (:mod:`.trial`).
    """
    model = read_model(path)
    inputs = _matched(inputs_of(model), _INPUTS, "input", path)
    outputs = _matched(list(model.graph.output), _OUTPUTS, "output", path)
    levels = axes_of(inputs["codes"])[1]
    if levels is None:
        raise ExportError(
            f"{path} does not fix q, the levels of its input {inputs['codes'].name}: expected (b,q,f)"
        )
    for name, value in inputs.items():
        if any(
            size is not None
            for i, size in enumerate(axes_of(value))
            if i != 1 or name not in ("codes", "known")
        ):
            raise ExportError(
                f"{path} fixes the size of its input {value.name}: expected free rows and frames, since windows "
                "grow and sessions share a pass"
            )
    shape = ReadyAcousticShape(vocab=vocab, levels=levels, codes=codes)
    told: list[tuple[str, int, tuple[str | int, ...]]] = [
        ("keys", INT64, ("b", shape.prompt_tokens)),
        ("values", INT64, ("b", levels, shape.prompt_tokens * TOKEN_FRAMES)),
        ("voice", FLOAT, ("b", 1)),
    ]
    g = GraphBuilder("acoustic", opset=opset_of(model))
    window = {
        "tokens": g.input("tokens", INT64, ("b", "t")),
        "codes": g.input("codes", INT64, ("b", levels, "f")),
        "known": g.input("known", BOOL, ("b", levels, "f")),
    }
    prompt_tokens, prompt_codes, _ = (g.input(*value) for value in told)
    level = g.input("level", INT64, ())
    temperature = g.input("temperature", FLOAT, ())
    noise = g.input("noise", FLOAT, ("b", "f"))
    certain = g.op("Equal", prompt_codes, prompt_codes)
    silent = g.op("Cast", g.op("Mul", g.op("Gather", prompt_codes, g.const(0), axis=1), g.const(0)), to=FLOAT)
    known_codes = g.op("Where", window["known"], window["codes"], g.const(0))
    fed = {
        "tokens": g.op("Concat", prompt_tokens, window["tokens"], axis=1),
        "codes": g.op("Concat", prompt_codes, known_codes, axis=2),
        "known": g.op("Concat", certain, window["known"], axis=2),
        "level": level,
        "temperature": temperature,
        "noise": g.op("Concat", silent, noise, axis=1),
    }
    made = splice(g, model, {inputs[name].name: value for name, value in fed.items()})
    behind = [g.const([shape.prompt_tokens * TOKEN_FRAMES]), g.const([np.iinfo(np.int64).max]), g.const([1])]
    guessed, sure = (g.op("Slice", made[outputs[name].name], *behind) for name in ("codes_out", "confidence"))
    settled, given = (g.op("Gather", window[name], level, axis=1) for name in ("known", "codes"))
    g.output("codes_out", g.op("Where", settled, given, guessed), INT64, ("b", "f"))
    g.output("confidence", sure, FLOAT, ("b", "f"))
    ready = as_graph(g.model(), PART, path.name)
    graphs: dict[str, tuple[Writable, tuple[StateTensor, ...]]] = {
        "acoustic_prompt": (_prompt(told), ()),
        "acoustic": (ready, ()),
    }
    return shape, ReadyPart(graphs, ready.arrays, f"acoustic stage from {path.name}")


def _prompt(told: list[tuple[str, int, tuple[str | int, ...]]]) -> GraphBuilder:
    """``acoustic_prompt``: tokens and codes as they came, under the names that ``acoustic`` reads them by."""
    g = GraphBuilder("acoustic_prompt")
    tokens = g.input("tokens", INT64, told[0][2])
    codes = g.input("codes", INT64, told[1][2])
    first = g.op("Slice", tokens, g.const([0]), g.const([1]), g.const([1]))
    nothing = g.op("Cast", g.op("Mul", first, g.const(0)), to=FLOAT)
    for (name, kind, axes), value in zip(told, (tokens, codes, nothing), strict=True):
        g.output(name, value, kind, axes)
    return g


def _matched(
    values: list[onnx.ValueInfoProto], wanted: dict[str, tuple[int, int]], kind: str, path: Path
) -> dict[str, onnx.ValueInfoProto]:
    """The file's values by our names: equal type and rank, which no two of ours share."""
    found: dict[str, onnx.ValueInfoProto] = {}
    for value in values:
        is_ = (value.type.tensor_type.elem_type, len(axes_of(value)))
        name = next((name for name, spec in wanted.items() if spec == is_), None)
        if name is None or name in found:
            raise ExportError(
                f"{path} has an {kind} {value.name} of {_type(is_[0])} and rank {is_[1]}: expected {_all(wanted)}"
            )
        found[name] = value
    for name in wanted:
        if name not in found:
            raise ExportError(f"{path} has no {kind} {name}: expected {_all(wanted)}")
    return found


def _all(wanted: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {_type(kind)} {_LETTERS[rank]}" for name, (kind, rank) in wanted.items())


def _type(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()

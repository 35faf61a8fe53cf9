"""A ready semantic tokenizer: an ONNX file that reads audio, or Whisper's log-mel as S3 tokenizers do.

What is taken (names are free, the types and axes tell):

* audio (b,n) float32 -> tokens (b,t), or (b,1,t), of any integer type;
* log-mel (b, mels, 4t) float32, and perhaps its length (b) -> the same. The bundle's graph computes the
  log-mel in front of it.

25 tokens a second either way: a window of 30 s must give 750 of them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from speechssm.axes import TOKEN_SAMPLES
from speechssm.bundle.shapes import ReadyTokenizerShape
from speechssm.errors import ExportError

from ..graphs.builder import FLOAT, INT64, GraphBuilder
from .model_file import as_graph, axes_of, inputs_of, opset_of, read_model, splice
from .part import ReadyPart
from .whisper_mel import whisper_mel

PART = "tokenizer"
INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.UINT8, TensorProto.INT8)
_WANTED = (
    "expected audio (b,n) float32, or log-mel (b,mels,frames) float32 and perhaps its length (b), "
    "and one output of whole numbers, tokens (b,t)"
)


def ready_tokenizer(path: Path, vocab: int) -> tuple[ReadyTokenizerShape, ReadyPart]:
    """The ONNX file at ``path`` as the part ``tokenizer`` of a model with ``vocab`` tokens.

    Raises ExportError for a file that is damaged or whose inputs and outputs are not those above. What it
    computes is checked when the bundle's graph first runs (:mod:`.trial`).
    """
    model = read_model(path)
    tokens = _tokens(model, path)
    g = GraphBuilder("tokenizer", opset=opset_of(model))
    features, length = _inputs(model, path)
    free = axes_of(features)
    rows: str | int = "b" if free[0] is None else 1
    if free[0] not in (None, 1):
        raise ExportError(
            f"{path} reads {free[0]} rows at a time: export it with a free first axis, or one row"
        )
    if len(free) == 2:
        audio = g.input("audio", FLOAT, (rows, free[1] or "n"))
        heard, fed = audio, {features.name: audio}
    else:
        audio = g.input("audio", FLOAT, (rows, "n" if free[2] is None else free[2] // 4 * TOKEN_SAMPLES))
        mels = free[1]
        assert mels is not None
        heard = whisper_mel(g, audio, mels)
        fed = {features.name: heard}
    if length is not None:
        fed[length.name] = _length(g, heard, length.type.tensor_type.elem_type)
    made = splice(g, model, fed)[tokens.name]
    flat = g.op("Reshape", made, g.const([0, -1]))
    g.output("tokens", g.op("Cast", flat, to=INT64), INT64, (rows, "t"))
    ready = as_graph(g.model(), PART, path.name)
    shape = ReadyTokenizerShape(vocab=vocab, features="audio" if len(free) == 2 else "log_mel")
    return shape, ReadyPart({"tokenizer": (ready, ())}, ready.arrays, f"tokenizer from {path.name}")


def _tokens(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    found = [v for v in model.graph.output if v.type.tensor_type.elem_type in INTEGERS]
    ranks = [len(axes_of(v)) for v in found]
    if len(found) != 1 or ranks[0] not in (2, 3):
        outputs = ", ".join(_said(v) for v in model.graph.output) or "none"
        raise ExportError(f"{path} has the outputs {outputs}: {_WANTED}")
    chosen: onnx.ValueInfoProto = found[0]
    return chosen


def _inputs(model: onnx.ModelProto, path: Path) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto | None]:
    inputs = inputs_of(model)
    waves = [v for v in inputs if v.type.tensor_type.elem_type == FLOAT and len(axes_of(v)) in (2, 3)]
    lengths = [v for v in inputs if v.type.tensor_type.elem_type in INTEGERS[:2] and len(axes_of(v)) == 1]
    takes_mel = len(waves) == 1 and len(axes_of(waves[0])) == 3
    if len(waves) != 1 or len(lengths) > takes_mel or len(inputs) != 1 + len(lengths):
        raise ExportError(f"{path} has the inputs {', '.join(map(_said, inputs)) or 'none'}: {_WANTED}")
    if takes_mel and axes_of(waves[0])[1] is None:
        raise ExportError(f"{path} does not say how many mel bands its input {waves[0].name} has: {_WANTED}")
    return waves[0], lengths[0] if lengths else None


def _length(g: GraphBuilder, mel: str, kind: int) -> str:
    """Frames of each row of ``mel`` (b, mels, 4t): (b)."""
    size = g.op("Shape", mel)
    frames = g.op("Slice", size, g.const([2]), g.const([3]))
    rows = g.op("Slice", size, g.const([0]), g.const([1]))
    return g.op("Cast", g.op("Expand", frames, rows), to=kind)


def _said(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    axes = ",".join("?" if size is None else str(size) for size in axes_of(value))
    return f"{value.name} {kind} ({axes})"

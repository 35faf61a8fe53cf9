"""Ready ONNX files as their authors leave them: weights inside, names and opset of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto

from speechssm.export.checkpoints import own
from speechssm.export.graphs.acoustic import acoustic_weights, build_acoustic, build_acoustic_prompt
from speechssm.export.graphs.builder import BOOL, FLOAT, INT32, INT64, GraphBuilder
from speechssm.export.graphs.tokenizer import build_tokenizer, tokenizer_weights
from speechssm.export.models.griffin import Griffin
from speechssm.export.parts import seeded_model
from speechssm.export.presets import PRESETS
from speechssm.export.ready.model_file import splice
from tests.doubles.inline import inline_weights

TINY = PRESETS["tiny"]


def save_tokenizer(path: Path, seed: int = 0) -> Path:
    """Audio in, tokens out: our tokenizer with its weights inside."""
    assert TINY.tokenizer is not None
    model = seeded_model("tokenizer", TINY.tokenizer, seed)
    onnx.save(inline_weights(build_tokenizer(TINY.tokenizer), {"tokenizer": tokenizer_weights(model)}), path)  # type: ignore[arg-type]
    return path


def save_acoustic(path: Path, seed: int = 0) -> Path:
    """Our acoustic stage in one file, the prompt in front of the window, weights inside."""
    assert TINY.acoustic is not None
    shape = TINY.acoustic
    weights = {"acoustic": acoustic_weights(seeded_model("acoustic", shape, seed))}  # type: ignore[arg-type]
    listen, window = (inline_weights(b(shape), weights) for b in (build_acoustic_prompt, build_acoustic))
    g = GraphBuilder("soundstorm")
    tokens = g.input("tokens", INT64, ("b", "t"))
    codes = g.input("codes", INT64, ("b", shape.levels, "f"))
    known = g.input("known", BOOL, ("b", shape.levels, "f"))
    level = g.input("level", INT64, ())
    temperature = g.input("temperature", FLOAT, ())
    noise = g.input("noise", FLOAT, ("b", "f"))

    def cut(x: str, axis: int, start: int, stop: int) -> str:
        return g.op("Slice", x, g.const([start]), g.const([stop]), g.const([axis]))

    end, p, f = np.iinfo(np.int64).max, shape.prompt_tokens, shape.prompt_frames
    told = splice(g, listen, {"tokens": cut(tokens, 1, 0, p), "codes": cut(codes, 2, 0, f)}, "listen/")
    fed = {"tokens": cut(tokens, 1, p, end), "codes": cut(codes, 2, f, end), "known": cut(known, 2, f, end)}
    fed |= {"level": level, "temperature": temperature, "noise": cut(noise, 1, f, end), **told}
    made = splice(g, window, fed, "window/")
    before = g.op("Gather", cut(codes, 2, 0, f), level, axis=1)
    g.output("codes_out", g.op("Concat", before, made["codes_out"], axis=1), INT64, ("b", "f"))
    zero = g.op("Cast", g.op("Mul", before, g.const(0)), to=FLOAT)
    g.output("confidence", g.op("Concat", zero, made["confidence"], axis=1), FLOAT, ("b", "f"))
    onnx.save(g.model(), path)
    return path


def save_s3_tokenizer(
    path: Path, vocab: int = 64, seed: int = 0, *, halvings: int = 2, mels: int = 128
) -> Path:
    """A small network with the inputs and outputs of S3Tokenizer's ``speech_tokenizer_v2_25hz.onnx``.

    feats (1, 128, T) and feats_length (1) int32 -> indices (1, T/4) int32, one row, opset 17. Two strided
    convolutions, a pointwise head and argmax stand for the real one's attention layers.
    """
    rng = np.random.default_rng(seed)
    width = 24
    g = GraphBuilder("speech_tokenizer", opset=17)
    feats = g.input("feats", FLOAT, (1, mels, "T"))
    length = g.input("feats_length", INT32, (1,))
    x, inputs = feats, mels
    for _ in range(halvings):
        taps = rng.standard_normal((width, inputs, 3)).astype(np.float32) / np.sqrt(3 * inputs)
        x = g.op("Conv", x, g.const(taps), kernel_shape=[3], strides=[2], pads=[1, 1])
        x, inputs = g.op("Mul", x, g.op("Sigmoid", x)), width
    at = g.op("Range", g.const(np.int32(0)), g.op("Squeeze", length), g.const(np.int32(1)))
    # The length is used, as the real network uses it to mask: frames past it would be zeroed.
    valid = g.op("Cast", g.op("Less", at, length), to=FLOAT)
    step = [1 << halvings]
    valid = g.op("Slice", valid, g.const([0]), g.const([np.iinfo(np.int64).max]), g.const([0]), g.const(step))
    head = rng.standard_normal((width, vocab)).astype(np.float32)
    scores = g.op("MatMul", g.op("Transpose", g.op("Mul", x, valid), perm=[0, 2, 1]), g.const(head))
    indices = g.op("Cast", g.op("ArgMax", scores, axis=-1, keepdims=0), to=INT32)
    g.output("indices", indices, INT32, (1, "T2"))
    model = g.model()
    model.ir_version = 8
    onnx.save(model, path)
    return path


def save_parts(folder: Path, *parts: str) -> Path:
    """A folder with our own checkpoints of ``lm`` and of ``parts``, at ``tiny``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("lm", *parts):
        shape = getattr(TINY, part)
        model: torch.nn.Module = seeded_model(part, shape, 1) if part != "lm" else _griffin(1)
        own.write_checkpoint(
            folder / f"{part}.safetensors", part, shape, model.state_dict(), about=f"tiny {part}"
        )
    return folder


def _griffin(seed: int) -> torch.nn.Module:
    model = seeded_model("lm", TINY.lm, seed)
    assert isinstance(model, Griffin)
    return model


def element_type(name: str) -> int:
    """ONNX's number of an element type."""
    return int(TensorProto.DataType.Value(name))

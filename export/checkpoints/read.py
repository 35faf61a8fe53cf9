"""``read_checkpoint``: tell the layout of what a path holds and read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError

from speechssm.bundle.shapes import LMShape, Shape
from speechssm.errors import ExportError

from ..lazy import LazyArrays
from ..parts import PARTS, AnyShape
from ..ready import dac
from ..ready.lyra import Lyra, is_lyra
from ..ready.part import ReadyPart
from . import deepmind, huggingface, own
from .files import TensorFiles, open_tensors, read_json, refuse_pickle
from .seeded import seeded_embedding

Source = torch.nn.Module | Mapping[str, np.ndarray] | ReadyPart
"""A reference model, its parameters by name, or finished graphs."""


LYRA = "Lyra v2"
"""Layout of a folder of Lyra's TFLite files."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint gave: shapes and weights by part, the language model's weights still on disk."""

    name: str
    layout: str
    shapes: dict[str, AnyShape]
    sources: dict[str, Source]
    about: str
    licences: tuple[str, ...] = field(default=())


def read_checkpoint(
    path: Path,
    *,
    rope: Literal["half", "none"] | None = None,
    window: int | None = None,
    speech_vocab: int | None = None,
    seed: int = 0,
) -> Checkpoint:
    """The checkpoint at ``path``: a safetensors file, or a folder with one, with shards, or with parts.

    ``rope`` and ``window`` (tokens) replace what the configuration says. ``speech_vocab`` puts a fresh
    embedding of that many speech tokens, drawn with ``seed``, in place of the text one (SpeechSSM section
    3.2), and a fresh head where the head is untied.

    Raises ExportError, naming the tensor or key and what was expected, for anything that is not whole.
    """
    path = Path(path)
    if is_lyra(path):
        found = _lyra(path)
    elif path.is_dir() and (path / "config.json").is_file():
        found = _huggingface(path)
    elif path.is_dir() and (parts := _own_parts(path)):
        found = _own(path.name, parts)
    else:
        found = _one(path, window or deepmind.WINDOW)
    lm = found.shapes.get("lm")
    if isinstance(lm, LMShape):
        changes = {k: v for k, v in (("rope", rope), ("window", window)) if v is not None}
        if changes:
            # model_copy does not validate; a shape read again does.
            lm = _changed(lm, changes)
            found = replace(found, shapes={**found.shapes, "lm": lm})
        if speech_vocab is not None:
            found = _with_speech_vocab(found, lm, speech_vocab, seed)
    elif rope or window or speech_vocab:
        raise ExportError(f"{path} holds no language model: --rope, --window and --speech-vocab need one")
    return found


def _lyra(path: Path) -> Checkpoint:
    shape, part = Lyra(path).part()
    return Checkpoint("lyra", LYRA, {"codec": shape}, {"codec": part}, part.about, part.licences)


def _huggingface(path: Path) -> Checkpoint:
    shape = huggingface.shape_from_config(read_json(path / "config.json", "a model's configuration"))
    files = open_tensors(path)
    return Checkpoint(
        path.resolve().name,
        "Hugging Face RecurrentGemma",
        {"lm": shape},
        {"lm": huggingface.griffin_parameters(files, shape)},
        "Griffin language model from a Hugging Face RecurrentGemma checkpoint",
    )


def _own_parts(path: Path) -> dict[str, Path]:
    """Files of a folder that are named for a part."""
    return {part: path / f"{part}.safetensors" for part in PARTS if (path / f"{part}.safetensors").is_file()}


def _own(name: str, paths: Mapping[str, Path]) -> Checkpoint:
    shapes: dict[str, AnyShape] = {}
    sources: dict[str, Source] = {}
    about: list[str] = []
    licences: list[str] = []
    for expected, path in paths.items():
        files = TensorFiles([path])
        if not own.is_own(files):
            raise ExportError(
                f"{path} has no metadata {own.PART}: write it with speechssm.export.checkpoints.own.write_checkpoint"
            )
        part, shape = own.read_shape(files, path.name)
        if part != expected:
            raise ExportError(f"{path.name} says it is the part {part!r}, expected {expected!r}")
        shapes[part], sources[part] = _part(part, shape, files)
        about += [text] if (text := files.metadata.get(own.ABOUT, "")) else []
        licences += [
            line for line in files.metadata.get(own.LICENCES, "").splitlines() if line not in licences
        ]
    return Checkpoint(
        name,
        "speechssm training",
        shapes,
        sources,
        "; ".join(about) or f"the checkpoint {name}",
        tuple(licences),
    )


def _part(part: str, shape: Shape, files: TensorFiles) -> tuple[AnyShape, Source]:
    if isinstance(shape, LMShape):
        return shape, own.griffin_parameters(files, shape)
    return shape, own.load_module(files, PARTS[part].model(shape))  # type: ignore[return-value]


def _one(path: Path, window: int) -> Checkpoint:
    refuse_pickle(path)
    files = open_tensors(path)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if own.is_own(files):
        part, _ = own.read_shape(files, path.name)
        only = path if path.is_file() else next(path.glob("*.safetensors"))
        return _own(name, {part: only})
    if deepmind.EMBEDDING in files:
        shape = deepmind.shape_from_tensors(files, window)
        return Checkpoint(
            name,
            "Google DeepMind RecurrentGemma",
            {"lm": shape},
            {"lm": deepmind.griffin_parameters(files, shape)},
            "Griffin language model from a Google DeepMind RecurrentGemma checkpoint",
        )
    if dac.MARK in files:
        codec_shape, codec = dac.dac_part(files)
        return Checkpoint(name, "Descript DAC", {"codec": codec_shape}, {"codec": codec}, codec.about)
    if "model.embed_tokens.weight" in files:
        raise ExportError(
            f"{path} has Hugging Face's tensor names but no config.json beside it: give the folder with both"
        )
    raise ExportError(
        f"{path} has tensors of no layout known here (the first is {min(files, default='none')}): expected Hugging "
        f"Face's model.embed_tokens.weight, DeepMind's {deepmind.EMBEDDING}, Descript's {dac.MARK}, or this project's "
        "own metadata"
    )


def _with_speech_vocab(found: Checkpoint, shape: LMShape, vocab: int, seed: int) -> Checkpoint:
    if vocab < 1:
        raise ExportError(f"--speech-vocab {vocab} is no vocabulary: give at least 1 token")
    old = found.sources["lm"]
    assert isinstance(old, Mapping)
    makers: dict[str, Callable[[], np.ndarray]] = {name: _read(old, name) for name in old}
    for name in {"embed", "head"} & makers.keys():
        makers[name] = _fresh(vocab, shape.width, seed, name)
    return replace(
        found,
        shapes={**found.shapes, "lm": _changed(shape, {"vocab": vocab})},
        sources={**found.sources, "lm": LazyArrays(makers)},
        about=f"{found.about}, with a fresh embedding of {vocab} speech tokens (seed {seed})",
    )


def _changed(shape: LMShape, changes: Mapping[str, object]) -> LMShape:
    try:
        return LMShape.model_validate({**shape.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the shape"
        raise ExportError(f"the model cannot be changed to that: {where}: {first['msg']}") from error


def _read(old: Mapping[str, np.ndarray], name: str) -> Callable[[], np.ndarray]:
    return lambda: old[name]


def _fresh(vocab: int, width: int, seed: int, name: str) -> Callable[[], np.ndarray]:
    return lambda: seeded_embedding(vocab, width, seed, name)

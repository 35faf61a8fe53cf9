"""This project's training layout: one safetensors file a part, its shape in the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from speechssm.bundle import tensors
from speechssm.bundle.shapes import AcousticShape, CodecShape, LMShape, Shape, TokenizerShape
from speechssm.errors import ExportError

from ..lazy import LazyArrays
from .files import TensorFiles
from .layout import Take, parameter_shapes, take_all

PART, SHAPE, ABOUT, LICENCES = "speechssm.part", "speechssm.shape", "speechssm.about", "speechssm.licences"
"""Metadata keys."""
SHAPES: dict[str, type[Shape]] = {
    "lm": LMShape,
    "tokenizer": TokenizerShape,
    "acoustic": AcousticShape,
    "codec": CodecShape,
}


def write_checkpoint(
    path: Path,
    part: str,
    shape: Shape,
    parameters: Mapping[str, np.ndarray | torch.Tensor],
    *,
    about: str = "",
    licences: tuple[str, ...] = (),
) -> None:
    """Write the float32 parameters (a module's ``state_dict()``) of one part, tensor by tensor."""
    metadata = {PART: part, SHAPE: shape.model_dump_json(), ABOUT: about, LICENCES: "\n".join(licences)}
    specs = {name: ("F32", tuple(int(n) for n in value.shape)) for name, value in parameters.items()}
    tensors.write(path, specs, (_array(parameters[name]) for name in specs), metadata)


def is_own(files: TensorFiles) -> bool:
    """True for a file that :func:`write_checkpoint` wrote."""
    return PART in files.metadata


def read_shape(files: TensorFiles, name: str) -> tuple[str, Shape]:
    """Part and shape from the metadata. Raises ExportError when they describe nothing."""
    part = files.metadata.get(PART, "")
    if part not in SHAPES:
        raise ExportError(f"{name} says it is the part {part!r}: expected one of {', '.join(SHAPES)}")
    try:
        return part, SHAPES[part].model_validate_json(files.metadata.get(SHAPE, ""))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ExportError(f"{name} describes no {part}: {where} {first['msg']}") from error


def griffin_parameters(files: TensorFiles, shape: LMShape) -> LazyArrays:
    """The language model's parameters. Raises ExportError naming the tensor that is wrong."""
    return take_all(files, {name: Take(name, size) for name, size in parameter_shapes(shape).items()})


def load_module(files: TensorFiles, module: torch.nn.Module) -> torch.nn.Module:
    """Fill ``module``'s state from the file. Raises ExportError naming the tensor that is wrong."""
    wanted = {name: Take(name, tuple(value.shape)) for name, value in module.state_dict().items()}
    values = {name: torch.from_numpy(array) for name, array in take_all(files, wanted).items()}
    module.load_state_dict(values)
    return module.eval()


def _array(value: np.ndarray | torch.Tensor) -> np.ndarray:
    array = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value
    return np.ascontiguousarray(array, np.float32)

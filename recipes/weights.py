"""Where a part's finished weights are found: the cache first, then the tree, then the demo bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from speechssm.bundle.shapes import AcousticShape, CodecShape, LMShape, TokenizerShape
from speechssm.bundle.shipped import VOICE
from speechssm.export.models.tokenizer import Tokenizer
from speechssm.export.parts import PARTS, AnyShape

from . import places, restore

TRAINED = Path(__file__).parent / "trained"
"""What is said of the committed weights, and the weights themselves until they are part of the demo bundle."""
STAGES: dict[str, tuple[str, type[AnyShape]]] = {
    "tokenizer": ("tokenizer", TokenizerShape),
    "codec": ("codec", CodecShape),
    "language": ("lm", LMShape),
    "acoustic": ("acoustic", AcousticShape),
}
"""Stage -> (part of the bundle, its shape)."""


@dataclass(frozen=True)
class Found:
    """``parameters`` in float32 by name, and ``about`` them: shape, step and figures."""

    parameters: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights."""
        return int(self.about["step"])


def shape(stage: str, about: dict[str, Any]) -> AnyShape:
    """The shape that ``about`` describes."""
    # As JSON, in which a list is a tuple.
    return STAGES[stage][1].model_validate_json(json.dumps(about["shape"]))


def best(stage: str, folder: Path | None = None) -> Found:
    """The best weights of ``stage``, or those of a run kept in ``folder``.

    Raises FileNotFoundError naming the stage to run when there are none.
    """
    cached = (folder or places.cache(stage)) / "best.safetensors"
    if folder is not None or cached.exists():
        return _read(cached)
    found = committed(stage)
    if found is None:
        raise FileNotFoundError(f"there are no {stage} weights yet: run 'python -m recipes {stage}' first")
    return found


def committed(stage: str, like: AnyShape | None = None) -> Found | None:
    """The weights in the tree, or None; with ``like``, only those of that very shape."""
    path = TRAINED / f"{stage}.safetensors"
    described = path.with_suffix(".json")
    if not described.exists():
        return None
    about = places.read_json(described)
    if like is not None and shape(stage, about) != like:
        return None
    if path.exists():
        return _read(path)
    part = STAGES[stage][0]
    stored = VOICE / f"{part}.safetensors"
    if not stored.exists():
        return None
    model = PARTS[part].model(shape(stage, about))
    return Found(restore.parameters(model, PARTS[part].weights, places.load_arrays(stored)), about)


def load_tokenizer() -> Tokenizer:
    """The best tokenizer as a reference model. Raises FileNotFoundError."""
    return cast(Tokenizer, load("tokenizer"))


def load(stage: str, folder: Path | None = None) -> nn.Module:
    """The weights of :func:`best` as a reference model."""
    found = best(stage, folder)
    model = PARTS[STAGES[stage][0]].model(shape(stage, found.about))
    model.load_state_dict(found.parameters)
    return model.eval()


def keep(stage: str) -> None:
    """Copy the best weights from the cache into the tree, to be committed.

    Matrices become float16, as the bundle stores them; scales, biases and decays stay float32. Raises
    FileNotFoundError when the cache holds no weights of ``stage``.
    """
    folder = places.cache(stage)
    if not (folder / "best.safetensors").exists():
        raise FileNotFoundError(f"{folder} holds no best weights: train and judge the part first")
    found = _read(folder / "best.safetensors")
    small = {k: v.half() if v.dim() > 1 else v for k, v in found.parameters.items()}
    places.write_tensors(TRAINED / f"{stage}.safetensors", small)
    places.write_json(TRAINED / f"{stage}.json", found.about)


def _read(path: Path) -> Found:
    values = {k: v.float() for k, v in places.load_tensors(path).items()}
    about = places.read_json(path.with_suffix(".json"))
    for evaluation in (path.with_name("evaluation.json"), path.with_name("evaluation-default.json")):
        if evaluation.exists():
            about["evaluation"] = places.read_json(evaluation)
    return Found(values, about)

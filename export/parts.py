"""The four parts of a bundle, one row each: reference model, graphs, weights, state.

Adding a graph to bundles means adding it here and in ``Manifest.needed_graphs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from speechssm.bundle.shapes import (
    AcousticShape,
    CodecShape,
    LMShape,
    ReadyAcousticShape,
    ReadyCodecShape,
    ReadyTokenizerShape,
    Shape,
    TokenizerShape,
)
from speechssm.bundle.state import StateTensor

from .checkpoints.seeded import seeded_griffin
from .graphs.acoustic import acoustic_weights, build_acoustic, build_acoustic_prompt
from .graphs.builder import GraphBuilder
from .graphs.codec import build_codec_decode, build_codec_encode, codec_state, codec_weights
from .graphs.lm import build_lm_chunk, build_lm_step
from .graphs.lm_weights import lm_weights
from .graphs.tokenizer import build_tokenizer, tokenizer_weights
from .models.acoustic import Acoustic
from .models.codec import Codec
from .models.griffin import Griffin, lm_state
from .models.tokenizer import Tokenizer

Build = Callable[..., GraphBuilder]
State = Callable[[Any], tuple[StateTensor, ...]]


def _no_state(_: Shape) -> tuple[StateTensor, ...]:
    return ()


@dataclass(frozen=True)
class Part:
    """How one part becomes graphs. ``graphs`` maps graph name to builder and state schema."""

    model: Callable[[Any], torch.nn.Module]
    weights: Callable[[Any], Mapping[str, np.ndarray]]
    graphs: Mapping[str, tuple[Build, State]]


PARTS: dict[str, Part] = {
    "lm": Part(
        Griffin, lm_weights, {"lm_step": (build_lm_step, lm_state), "lm_chunk": (build_lm_chunk, lm_state)}
    ),
    "tokenizer": Part(Tokenizer, tokenizer_weights, {"tokenizer": (build_tokenizer, _no_state)}),
    "acoustic": Part(
        Acoustic,
        acoustic_weights,
        {"acoustic_prompt": (build_acoustic_prompt, _no_state), "acoustic": (build_acoustic, _no_state)},
    ),
    "codec": Part(
        Codec,
        codec_weights,
        {"codec_encode": (build_codec_encode, _no_state), "codec_decode": (build_codec_decode, codec_state)},
    ),
}
"""Parts by the name the manifest gives them."""

AnyShape = (
    LMShape
    | TokenizerShape
    | AcousticShape
    | CodecShape
    | ReadyTokenizerShape
    | ReadyAcousticShape
    | ReadyCodecShape
)


def seeded_model(part: str, shape: AnyShape, seed: int) -> torch.nn.Module:
    """The reference model of ``part`` with random weights; parts do not share random numbers."""
    if isinstance(shape, LMShape):
        with torch.device("meta"):
            model = Griffin(shape)
        values = {k: torch.from_numpy(v) for k, v in seeded_griffin(shape, seed).items()}
        model.load_state_dict(values, assign=True)
        return model.eval()
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed * len(PARTS) + list(PARTS).index(part))
        return PARTS[part].model(shape).eval()
    finally:
        torch.random.set_rng_state(state)

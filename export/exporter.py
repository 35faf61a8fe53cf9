"""From reference models to a bundle on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import speechssm
from speechssm.bundle import limits
from speechssm.bundle.manifest import (
    AcousticPart,
    CodecPart,
    FileEntry,
    LMPart,
    Manifest,
    TokenizerPart,
    Windows,
)
from speechssm.bundle.shapes import (
    AcousticShape,
    CodecShape,
    LMShape,
    ReadyAcousticShape,
    ReadyCodecShape,
)
from speechssm.bundle.state import StateTensor
from speechssm.errors import ExportError

from .calibrate import activation_ranges
from .card import CARD, model_card
from .checkpoints.layout import parameter_shapes
from .checkpoints.read import LYRA, Checkpoint, Source, read_checkpoint
from .checkpoints.seeded import seeded_griffin
from .graphs.builder import OPSET
from .graphs.lm_weights import griffin_weights, model_parameters
from .graphs.sampler import K_MAX
from .models.griffin import Griffin
from .models.transformer import Attention, transformer_shape
from .package import new_folder, part_file, write_graph, write_manifest, write_parts
from .parity import Parity, check_lm, gate_of
from .parity.html import page
from .parts import PARTS, AnyShape, seeded_model
from .presets import PRESETS, Preset
from .ready.acoustic import ready_acoustic
from .ready.lyra import Lyra
from .ready.part import ReadyPart, Writable
from .ready.refit import refit
from .ready.tokenizer import ready_tokenizer
from .ready.trial import try_ready
from .storage import STORED, Storage, is_calibrated, is_integer, stored_parameters, stored_weights

Ring = Literal["float32", "float16", "int8"]
LRU_MARGIN = 100.0
"""The watchdog's limit over the largest state the exporter saw."""
_PART_ENTRIES: dict[str, Any] = {"tokenizer": TokenizerPart, "acoustic": AcousticPart, "codec": CodecPart}


PARITY, PARITY_PAGE = "parity.json", "parity.html"
"""The parity report's files, beside the manifest and listed in it."""


@dataclass(frozen=True)
class Quantizer:
    """Codebooks to fit: ``levels`` (q) of ``codes`` (c) over the recordings of ``folder``."""

    folder: Path
    levels: int = 12
    codes: int = 1024


def export_preset(
    name: str,
    target: Path,
    *,
    seed: int = 0,
    storage: Storage = "float32",
    overwrite: bool = False,
    rollout: int | None = None,
    threads: int = 0,
    transformer: Attention | None = None,
    capacity: int | None = None,
    ring: Ring = "float32",
    ring_op: bool = False,
    linear_op: bool = False,
) -> Manifest:
    """Write a bundle of preset ``name`` with seeded random weights: it runs, and sounds like noise.

    ``transformer`` makes the language model the preset's baseline instead, with a cache of ``capacity``
    tokens, or one that grows. ``ring`` is how keys and values of past tokens are kept,
    ``ring_op`` and ``linear_op`` as in :func:`export_models`.

    Raises ExportError for an unknown preset, or as :func:`export_models` does.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise ExportError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    shapes, about = preset_shapes(preset), preset.about
    if transformer is not None:
        shapes["lm"] = transformer_shape(preset.lm, transformer, capacity=capacity)
        cache = f"a cache of {capacity} tokens" if capacity else "a cache that grows"
        name, about = f"{name}-{transformer}", f"Transformer baseline ({transformer}, {cache}) of {about}"
    elif capacity is not None:
        raise ExportError("a capacity belongs to the Transformer baseline: add --transformer mqa or mha")
    shapes["lm"] = _with_ring(shapes["lm"], ring)
    models: dict[str, Source] = {
        part: seeded_griffin(shape, seed) if isinstance(shape, LMShape) else seeded_model(part, shape, seed)
        for part, shape in shapes.items()
    }
    return export_models(
        f"{name}-seed{seed}",
        shapes,
        models,
        target,
        about=f"{about}; random weights of seed {seed}",
        seeded=True,
        storage=storage,
        overwrite=overwrite,
        rollout=rollout,
        threads=threads,
        ring_op=ring_op,
        linear_op=linear_op,
    )


def export_checkpoint(
    path: Path,
    target: Path,
    *,
    parts: Mapping[str, Path] | None = None,
    onnx: Mapping[str, Path] | None = None,
    quantizer: Quantizer | None = None,
    rope: Literal["half", "none"] | None = None,
    window: int | None = None,
    speech_vocab: int | None = None,
    seed: int = 0,
    name: str | None = None,
    about: str | None = None,
    licences: tuple[str, ...] = (),
    notes: str = "",
    storage: Storage = "float32",
    ring: Ring = "float32",
    ring_op: bool = False,
    linear_op: bool = False,
    overwrite: bool = False,
    rollout: int | None = None,
    threads: int = 0,
) -> Manifest:
    """Write a bundle of the checkpoint at ``path``; weights pass through memory one layer at a time.

    ``parts`` adds or replaces the tokenizer, acoustic stage and codec from checkpoints of their own;
    ``onnx`` the tokenizer and acoustic stage by ready ONNX files (:mod:`.ready`). ``quantizer`` fits the
    codebooks of a Lyra codec among ``parts`` anew.
    ``rope``, ``window``, ``speech_vocab`` and ``seed`` are those of
    :func:`speechssm.export.checkpoints.read.read_checkpoint`. ``about`` replaces what the checkpoint says of
    itself; ``notes`` are Markdown sections for the model card.

    Raises ExportError when a checkpoint is damaged, incomplete or not understood, when parts do not fit
    together, or as :func:`export_models` does.
    """
    found = read_checkpoint(path, rope=rope, window=window, speech_vocab=speech_vocab, seed=seed)
    shapes, sources = dict(found.shapes), dict(found.sources)
    licences, told = (*found.licences, *licences), [found.about]
    for part, where in (parts or {}).items():
        other = read_checkpoint(where)
        if part == "codec" and quantizer is not None:
            other = _refitted(where, other, quantizer, seed, threads)
        if part not in other.shapes:
            raise ExportError(f"{where} holds {', '.join(other.shapes)}: expected the part {part}")
        shapes[part], sources[part] = other.shapes[part], other.sources[part]
        licences += tuple(line for line in other.licences if line not in licences)
        told.append(other.about)
    for part, file in (onnx or {}).items():
        if parts and part in parts:
            raise ExportError(f"the part {part} was given twice, as {parts[part]} and as {file}: give one")
        shapes[part], made = _ready(part, file, shapes)
        sources[part] = made
        told.append(made.about)
    if "lm" in shapes:
        shapes["lm"] = _with_ring(shapes["lm"], ring)
    return export_models(
        name or found.name,
        shapes,
        sources,
        target,
        about=about or "; ".join(told)[: limits.TEXT],
        storage=storage,
        licences=licences,
        notes=notes,
        overwrite=overwrite,
        rollout=rollout,
        threads=threads,
        ring_op=ring_op,
        linear_op=linear_op,
    )


def _with_ring(shape: AnyShape, ring: Ring) -> AnyShape:
    assert isinstance(shape, LMShape)
    return shape.model_copy(update={"ring": ring})


def _refitted(where: Path, other: Checkpoint, quantizer: Quantizer, seed: int, threads: int) -> Checkpoint:
    if other.layout != LYRA:
        raise ExportError(f"{where} is a codec of {other.layout}: only Lyra's quantizer is fitted anew")
    lyra = Lyra(where)
    made = refit(lyra, quantizer.folder, quantizer.levels, quantizer.codes, seed=seed, threads=threads)
    shape, part = lyra.part(made.codebooks)
    return replace(other, shapes={"codec": shape}, sources={"codec": part}, about=part.about)


def _ready(part: str, file: Path, shapes: Mapping[str, AnyShape]) -> tuple[AnyShape, ReadyPart]:
    """A ready ONNX file as a part; what the file cannot tell comes from the other parts."""
    lm, codec = shapes.get("lm"), shapes.get("codec")
    if not isinstance(lm, LMShape):
        raise ExportError(f"{file} needs a language model beside it, which tells its vocabulary")
    if part == "tokenizer":
        return ready_tokenizer(file, lm.vocab)
    if not isinstance(codec, CodecShape | ReadyCodecShape):
        raise ExportError(
            f"{file} does not tell how many codes a level has: give the codec it was trained with as --codec"
        )
    return ready_acoustic(file, lm.vocab, codec.codes)


def language_model(
    checkpoint: Path | None,
    preset: str,
    *,
    seed: int = 0,
    rope: Literal["half", "none"] | None = None,
    window: int | None = None,
    speech_vocab: int | None = None,
) -> tuple[LMShape, Mapping[str, np.ndarray]]:
    """Shape and lazy parameters of a checkpoint's language model or, without one, of a preset's."""
    if checkpoint is None:
        if preset not in PRESETS:
            raise ExportError(f"there is no preset {preset!r}: choose one of {', '.join(PRESETS)}")
        return PRESETS[preset].lm, seeded_griffin(PRESETS[preset].lm, seed)
    found = read_checkpoint(checkpoint, rope=rope, window=window, speech_vocab=speech_vocab, seed=seed)
    shape, source = found.shapes.get("lm"), found.sources.get("lm")
    if not isinstance(shape, LMShape) or not isinstance(source, Mapping):
        raise ExportError(f"{checkpoint} holds no language model")
    return shape, source


def preset_shapes(preset: Preset) -> dict[str, AnyShape]:
    """The shapes of the parts a preset has, by part name."""
    found = {part: getattr(preset, part) for part in PARTS}
    return {part: shape for part, shape in found.items() if shape is not None}


def export_models(
    name: str,
    shapes: Mapping[str, AnyShape],
    models: Mapping[str, Source],
    target: Path,
    *,
    about: str,
    seeded: bool = False,
    storage: Storage = "float32",
    licences: tuple[str, ...] = (),
    notes: str = "",
    overwrite: bool = False,
    rollout: int | None = None,
    threads: int = 0,
    ring_op: bool = False,
    linear_op: bool = False,
) -> Manifest:
    """Write a bundle of the given reference models, and beside the manifest its parity report.

    ``models["lm"]`` may be the module or its parameters by name; from a lazy mapping no more than one
    layer is in memory while weights are written. ``storage`` is how weight matrices lie on disk; graphs
    widen them to float32 when they are loaded. ``rollout`` is the length of the parity report's rollout
    in steps: 24 000 up to 50 M parameters and 64 above when not given. ``threads`` is for its engine.
    Of more than 4 000 M parameters in two bytes, the report's engine widens them at each use.
    ``ring_op`` makes attention one node of the domain ``speechssm``, as the recurrence is: a kernel where
    the native library is loaded, else the same nodes as without it; ``linear_op`` does so with every linear layer
    with what lies between those of a recurrent block, with appends to rings and with the sampler. It is for processors.

    Raises ExportError when the target exists, a weight is missing or not finite, a parity gate is
    missed, or the disk fails; no bundle is left then. After a missed gate the report is kept beside the
    target as ``<target>.parity.json`` and ``.html``.
    """
    lm = shapes.get("lm")
    if not isinstance(lm, LMShape):
        raise ExportError("a bundle needs a language model: give at least the part 'lm'")
    _check_together(shapes)
    storages: dict[str, Storage] = {part: _part_storage(part, models[part], storage) for part in shapes}
    source = models["lm"]
    parameters = model_parameters(source) if isinstance(source, Griffin) else source
    assert isinstance(parameters, Mapping)
    with new_folder(Path(target), overwrite=overwrite) as folder:
        made = {
            graph: pair
            for part in shapes
            for graph, pair in _graphs(
                part, shapes[part], models[part], storages[part], ring_op=ring_op, linear_op=linear_op
            ).items()
        }
        builders = {graph: builder for graph, (builder, _) in made.items()}
        ranges = (
            activation_ranges(lm, parameters, folder.parent, threads=threads)
            if is_calibrated(storage)
            else {}
        )
        weights: dict[str, Mapping[str, np.ndarray]] = {
            "lm": stored_weights(lm, griffin_weights(lm, parameters), storage, ranges, linear_op=linear_op)
        }
        weights.update({part: _weights(part, models[part]) for part in shapes if part != "lm"})
        with torch.no_grad():
            write_parts(folder, builders, weights)
        graphs = {
            graph: write_graph(folder, graph, builder, state) for graph, (builder, state) in made.items()
        }
        try_ready(folder, graphs, shapes, threads)
        count = sum(math.prod(s) for s in parameter_shapes(lm).values())
        parity = check_lm(
            folder,
            graphs,
            lm,
            stored_parameters(parameters, storage),
            storage=storage,
            count=count,
            rollout=rollout,
            gate=gate_of(storage, lm.ring),
            threads=threads,
        )
        _keep_report(parity, folder, Path(target), name)
        (folder / CARD).write_text(
            model_card(name, about, shapes, storage, parity.summary(), licences, seeded=seeded, notes=notes),
            encoding="utf-8",
        )
        limit = LRU_MARGIN * parity.largest_lru

        def manifest(files: dict[str, FileEntry]) -> Manifest:
            lm_part = LMPart(shape=lm, storage=storage, k_max=min(K_MAX, lm.vocab), lru_limit=limit)
            others = {
                part: entry(shape=shapes[part], storage=storages[part])
                for part, entry in _PART_ENTRIES.items()
                if part in shapes
            }
            return Manifest(
                name=name,
                about=about,
                seeded=seeded,
                exporter=f"speechssm {speechssm.__version__}",
                opset=OPSET,
                windows=Windows(),
                lm=lm_part,
                graphs=graphs,
                files=files,
                licences=licences,
                parity=parity.summary(),
                **others,
            )

        return write_manifest(folder, manifest)


def _part_storage(part: str, model: Source, storage: Storage) -> Storage:
    """A ready part stays as it came; integers are for the language model alone."""
    if isinstance(model, ReadyPart):
        return "float32"
    return "float16" if part != "lm" and is_integer(storage) else storage


def _graphs(
    part: str, shape: AnyShape, model: Source, storage: Storage, *, ring_op: bool, linear_op: bool
) -> Mapping[str, tuple[Writable, tuple[StateTensor, ...]]]:
    """Graph builders of a part with their state schemas, by graph name."""
    if isinstance(model, ReadyPart):
        return model.graphs
    more = {"ring_op": ring_op, "linear_op": linear_op} if part == "lm" else {}
    return {
        name: (build(shape, STORED[storage], **more), state(shape))
        for name, (build, state) in PARTS[part].graphs.items()
    }


def _weights(part: str, model: Source) -> Mapping[str, np.ndarray]:
    return model.weights if isinstance(model, ReadyPart) else PARTS[part].weights(model)


def _check_together(shapes: Mapping[str, AnyShape]) -> None:
    """The manifest would refuse these too, but only after the weights were written."""
    vocabularies = {p: s.vocab for p, s in shapes.items() if not isinstance(s, CodecShape | ReadyCodecShape)}
    if len(shapes) == len(PARTS) and len(set(vocabularies.values())) > 1:
        raise ExportError(
            "the parts have different vocabularies: "
            + ", ".join(f"{part} {size}" for part, size in vocabularies.items())
            + "; they have to be trained on the same tokens"
        )
    acoustic, codec = shapes.get("acoustic"), shapes.get("codec")
    if isinstance(acoustic, AcousticShape | ReadyAcousticShape) and isinstance(
        codec, CodecShape | ReadyCodecShape
    ):
        mine, theirs = (acoustic.levels, acoustic.codes), (codec.levels, codec.codes)
        if mine != theirs:
            raise ExportError(
                f"the acoustic stage makes {mine[0]} levels of {mine[1]} codes, the codec reads {theirs[0]} of "
                f"{theirs[1]}: they have to be trained together"
            )


def _keep_report(parity: Parity, folder: Path, target: Path, name: str) -> None:
    """Write the report into the bundle, or beside it where the bundle is refused."""
    text, html = json.dumps({"bundle": name, **parity.report}, indent=1) + "\n", page(name, parity.report)
    if not parity.failures:
        (folder / PARITY).write_text(text, encoding="utf-8")
        (folder / PARITY_PAGE).write_text(html, encoding="utf-8")
        return
    beside = target.with_name(f"{target.name}.{PARITY}")
    beside.write_text(text, encoding="utf-8")
    beside.with_suffix(".html").write_text(html, encoding="utf-8")
    more = f"; {len(parity.failures) - 1} more" if len(parity.failures) > 1 else ""
    raise ExportError(
        f"{name} missed its parity gate, so no bundle was written: {parity.failures[0]}{more}. "
        f"Read {beside.with_suffix('.html')}"
    )


__all__ = [
    "PARITY",
    "PARITY_PAGE",
    "export_checkpoint",
    "export_models",
    "export_preset",
    "part_file",
    "preset_shapes",
]

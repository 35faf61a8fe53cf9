"""``speechssm export``, ``inspect`` and ``verify``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechssm.bundle import limits, open_bundle
from speechssm.errors import ExportError

LAST_SEED = (1 << 60) - 1
"""Largest seed of random weights; torch's own numbers are made of it and the part."""


class Storage(StrEnum):
    """How weight matrices lie on disk."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    DYNAMIC_INT8 = "dynamic_int8"
    QDQ_INT8 = "qdq_int8"
    QDQ_FP8 = "qdq_fp8"


class Ring(StrEnum):
    """How keys and values of past tokens are kept."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


class Rope(StrEnum):
    """Rotary embedding of the attention layers."""

    HALF = "half"
    NONE = "none"


class Attention(StrEnum):
    """Heads of the Transformer baseline."""

    MQA = "mqa"
    MHA = "mha"


_Part = Annotated[Path | None, typer.Option(help="Checkpoint of this part, beside or instead of CKPT's.")]
_Ready = Annotated[
    Path | None, typer.Option(help="Ready ONNX file of this part, checked before it is taken.")
]


def export(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CKPT]",
            help="Safetensors file, or folder with one, with shards or with parts. Without it a preset is made.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="tiny, demo, 2b or 9b: seeded random weights (tiny when no CKPT is given)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of random weights.")] = 0,
    dtype: Annotated[Storage, typer.Option(help="Storage type of the weight matrices.")] = Storage.FLOAT32,
    ring: Annotated[
        Ring, typer.Option(help="How keys and values of past tokens are kept: most of a session's bytes.")
    ] = Ring.FLOAT32,
    ring_op: Annotated[
        bool,
        typer.Option(
            "--ring-op",
            help="Attention as one node: a kernel where --native or the TensorRT plugin brings it.",
        ),
    ] = False,
    linear_op: Annotated[
        bool,
        typer.Option(
            "--linear-op",
            help="Linear layers, a recurrence with all around it, appends and the sampler as one node each, likewise.",
        ),
    ] = False,
    tokenizer: _Part = None,
    acoustic: _Part = None,
    codec: _Part = None,
    refit: Annotated[
        Path | None,
        typer.Option(help="With a Lyra --codec: fit its quantizer anew to this folder of speech."),
    ] = None,
    refit_levels: Annotated[int, typer.Option(help="With --refit: levels of the quantizer.")] = 12,
    refit_codes: Annotated[int, typer.Option(help="With --refit: codes of a level.")] = 1024,
    tokenizer_onnx: _Ready = None,
    acoustic_onnx: _Ready = None,
    rope: Annotated[Rope | None, typer.Option(help="Replace the checkpoint's rotary embedding.")] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, max=limits.WINDOW_TOKENS, help="Replace the checkpoint's attention window, in tokens."
        ),
    ] = None,
    speech_vocab: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.SIZE,
            help="Put a fresh embedding of this many speech tokens in place of the text one.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the checkpoint's by default.")] = None,
    licence: Annotated[list[str] | None, typer.Option(help="Licence to record; may be repeated.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    rollout: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.POSITION,
            help="Steps of the parity report; by default 24 000 up to 50 M parameters, 64 above.",
        ),
    ] = None,
    quantize: Annotated[
        bool,
        typer.Option("--quantize", help="First print size, speed and quality of every storage side by side."),
    ] = False,
    held_out: Annotated[
        Path | None,
        typer.Option(help="With --quantize: .npy file of held-out tokens (b,t); without it, own samples."),
    ] = None,
    transformer: Annotated[
        Attention | None,
        typer.Option(help="With --preset: its Transformer baseline, one or all key/value heads."),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            min=1, max=limits.POSITION, help="Tokens the baseline's cache holds; without it the cache grows."
        ),
    ] = None,
) -> None:
    """Write a bundle, and its parity report, of a checkpoint or of a preset with seeded random weights."""
    try:
        from speechssm.export.exporter import Quantizer, export_checkpoint, export_preset
    except ImportError as error:
        raise ExportError(
            f"exporting needs torch and onnx ({error.name} is missing): run 'pip install speechssm[export,cpu]'"
        ) from error
    if held_out is not None and not quantize:
        raise ExportError("held-out tokens are for comparing storages: add --quantize")
    if refit is not None and codec is None:
        raise ExportError("--refit fits the quantizer of a codec: give Lyra's folder as --codec")
    if quantize:
        _print_tradeoff(checkpoint, preset, out, seed, held_out, rope, window, speech_vocab)
    parts = {"tokenizer": tokenizer, "acoustic": acoustic, "codec": codec}
    given = {part: path for part, path in parts.items() if path is not None}
    ready = {"tokenizer": tokenizer_onnx, "acoustic": acoustic_onnx}
    onnx = {part: path for part, path in ready.items() if path is not None}
    if checkpoint is not None:
        if preset is not None:
            raise ExportError(
                f"both the checkpoint {checkpoint} and the preset {preset} were asked for: give one"
            )
        manifest = export_checkpoint(
            checkpoint,
            out,
            parts=given,
            onnx=onnx,
            quantizer=None if refit is None else Quantizer(refit, refit_levels, refit_codes),
            rope=None if rope is None else rope.value,
            window=window,
            speech_vocab=speech_vocab,
            seed=seed,
            name=name,
            licences=tuple(licence or ()),
            storage=dtype.value,
            ring=ring.value,
            ring_op=ring_op,
            linear_op=linear_op,
            overwrite=overwrite,
            rollout=rollout,
        )
    elif given or onnx or rope or window or speech_vocab or name or licence:
        raise ExportError("this option belongs to a checkpoint: give its path before -o")
    else:
        manifest = export_preset(
            preset or "tiny",
            out,
            seed=seed,
            storage=dtype.value,
            ring=ring.value,
            ring_op=ring_op,
            linear_op=linear_op,
            overwrite=overwrite,
            rollout=rollout,
            transformer=None if transformer is None else transformer.value,
            capacity=capacity,
        )
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"{out}: bundle {manifest.name}, {len(manifest.graphs)} graphs, {size / 1e6:.1f} MB")
    parity = manifest.parity
    print(
        f"parity over {parity['steps']} steps: states within {parity['largest_state_difference']:.1e}, "
        f"logits within {parity['logits']:.1e}; report in {out / 'parity.html'}"
    )


def _print_tradeoff(
    checkpoint: Path | None,
    preset: str | None,
    out: Path,
    seed: int,
    held_out: Path | None,
    rope: Rope | None,
    window: int | None,
    speech_vocab: int | None,
) -> None:
    from speechssm.export.exporter import language_model
    from speechssm.export.tradeoff import compare_storages, read_tokens, table

    shape, parameters = language_model(
        checkpoint,
        preset or "tiny",
        seed=seed,
        rope=None if rope is None else rope.value,
        window=window,
        speech_vocab=speech_vocab,
    )
    tokens = None if held_out is None else read_tokens(held_out, shape.vocab)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    costs = compare_storages(shape, parameters, out.absolute().parent, tokens=tokens)
    print(table(costs, "the model's own samples" if held_out is None else str(held_out)))


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a bundle holds: graphs, operators, parameters, bytes, state of one session."""
    from speechssm.engines.inspect import inspect_bundle, render

    report = inspect_bundle(open_bundle(bundle))
    print(json.dumps(report) if as_json else render(report))


def verify(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")]) -> None:
    """Check every file's size and digest, every weight, and that every graph loads and runs."""
    from speechssm.engines.verify import verify_bundle

    for line in verify_bundle(open_bundle(bundle)):
        print(line)
    print(f"{bundle}: sound")

"""``speechssm export``, ``inspect`` and ``verify``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechssm.bundle import open_bundle
from speechssm.errors import ExportError


class Storage(StrEnum):
    """How weight matrices lie on disk."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def export(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    preset: Annotated[str, typer.Option(help="tiny, demo, 2b or 9b.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    dtype: Annotated[Storage, typer.Option(help="Storage type of the weight matrices.")] = Storage.FLOAT32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    rollout: Annotated[
        int | None,
        typer.Option(help="Steps of the parity report; by default 24 000 up to 50 M parameters, 64 above."),
    ] = None,
) -> None:
    """Write a bundle of a preset's shapes with seeded random weights, and its parity report."""
    try:
        from speechssm.export.exporter import export_preset
    except ImportError as error:
        raise ExportError(
            f"exporting needs torch and onnx ({error.name} is missing): run 'pip install speechssm[export,cpu]'"
        ) from error
    manifest = export_preset(
        preset, out, seed=seed, storage=dtype.value, overwrite=overwrite, rollout=rollout
    )
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"{out}: bundle {manifest.name}, {len(manifest.graphs)} graphs, {size / 1e6:.1f} MB")


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

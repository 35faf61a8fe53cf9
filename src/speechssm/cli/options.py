"""Options that several commands share, one wording each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Provider(StrEnum):
    """Execution providers."""

    CPU = "cpu"
    CUDA = "cuda"


Bundle = Annotated[Path | None, typer.Option(help="Bundle folder; the demo voice when left out.")]
Execution = Annotated[Provider, typer.Option(help="Execution provider.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of one engine call; 0 takes every core.")]
Native = Annotated[
    bool,
    typer.Option(
        "--native", help="Run on the operators that 'speechssm ext build' made, where graphs have them."
    ),
]
Engines = Annotated[Path | None, typer.Option(help="Folder of engines that 'speechssm build' made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]

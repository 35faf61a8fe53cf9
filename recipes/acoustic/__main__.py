"""``python -m recipes.acoustic``: see :mod:`recipes.acoustic`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from .. import places
from ..codec.train import load_best as load_codec
from . import evaluate as evaluation
from . import figure as drawing
from . import packed
from . import prepare as preparation
from . import timing as timetable
from . import train as training
from .crops import Mixture

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Data = Annotated[Path, typer.Option(help="The data folder (kathleen, librispeech, stories_speech).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Folder = Annotated[Path | None, typer.Option(help="Where the run is kept; the cache by default.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@app.command()
def prepare(
    data: Data,
    device: Device = "auto",
    threads: Threads = 1,
    only: Annotated[
        Literal["heard", "codes"] | None, typer.Option(help="Tokens and voiceprints, or codes; else both.")
    ] = None,
) -> None:
    """Encode every recording with the trained tokenizer and codec; what exists already is kept."""
    torch.set_num_threads(threads)
    preparation.prepare(data, _device(device), preparation.KINDS if only is None else (only,))


@app.command()
def pack(data: Data, out: Annotated[Path, typer.Option("-o", help="A safetensors file.")]) -> None:
    """Put what training needs of the prepared recordings into one file, for a machine without them."""
    preparation.same_source(places.cache("acoustic") / "prepared")
    packed.write(out, training.examples(data))


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="The data folder, or what pack wrote.")],
    device: Device = "auto",
    steps: int = training.Plan.steps,
    batch: int = training.Plan.batch,
    learning_rate: float = training.Plan.learning_rate,
    seed: int = training.Plan.seed,
    threads: Threads = 1,
    minutes: Annotated[float, typer.Option(help="Save and stop after this long.")] = math.inf,
    dropout: Annotated[float, typer.Option(help="0 where the steps are fewer than the data.")] = (
        training.Plan.dropout
    ),
    window: Annotated[
        list[int], typer.Option(help="Tokens of a window, one drawn per step; 75 suits a CPU.")
    ] = (*Mixture.tokens,),  # type: ignore[assignment]
    warmup: Annotated[int, typer.Option(help="Steps to the full rate.")] = training.Plan.warmup,
    average: Annotated[float, typer.Option(help="Share of the averaged weights that a step keeps.")] = (
        training.Plan.average
    ),
    judge_every: Annotated[int, typer.Option(help="Steps between choices of the best.")] = (
        training.Plan.judge_every
    ),
    folder: Folder = None,
) -> None:
    """Train, or resume where the last checkpoint stopped."""
    torch.set_num_threads(threads)
    if data.is_file():
        examples = packed.read(data)
    else:
        preparation.same_source((folder or places.cache("acoustic")) / "prepared")
        examples = training.examples(data, folder)
    plan = training.Plan(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        dropout=dropout,
        warmup=warmup,
        average=average,
        judge_every=judge_every,
        mixture=Mixture(tokens=tuple(window)),
    )
    training.run(
        examples,
        _device(device),
        plan,
        folder=folder,
        codebooks=lambda: load_codec().codebooks.detach(),
        minutes=minutes,
    )


@app.command()
def evaluate(
    data: Data, schedule: str = "default", folder: Folder = None, most: int = 120, threads: Threads = 1
) -> None:
    """Print the figures of the best weights on held-out speakers."""
    torch.set_num_threads(threads)
    preparation.same_source((folder or places.cache("acoustic")) / "prepared")
    evaluation.run(data, folder, schedule, most)


@app.command()
def figure(folder: Folder = None) -> None:
    """Draw the training log as an SVG beside it."""
    print(drawing.run(folder))


@app.command()
def timing(threads: Threads = 2, rounds: int = 5, preset: str = "demo") -> None:
    """Time the passes of the exported graph on this machine."""
    timetable.run(threads, rounds, preset)


if __name__ == "__main__":
    app()

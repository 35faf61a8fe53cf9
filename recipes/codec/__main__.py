"""``python -m recipes.codec``: see :mod:`recipes.codec`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import places
from . import evaluate as evaluation
from . import figure as drawing
from . import pack as packing
from . import train as training
from . import words as judged_words

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Data = Annotated[Path, typer.Option(help="The data folder (kathleen, librispeech, stories_speech).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Folder = Annotated[Path | None, typer.Option(help="Where the run is kept; the cache by default.")]


@app.command()
def train(
    data: Data,
    device: Device = "auto",
    steps: int = training.Plan.steps,
    batch: int = training.Plan.batch,
    learning_rate: float = training.Plan.learning_rate,
    seed: int = training.Plan.seed,
    scales: Annotated[
        int, typer.Option(help="STFT scales drawn per step; 2 suit a CPU.")
    ] = training.Plan.scales,
    critic_rows: Annotated[int, typer.Option(help="Rows the critic sees per step; 4 suit a CPU.")] = (
        training.Plan.critic_rows
    ),
    critic_from: Annotated[float, typer.Option(help="Share of the steps after which it joins; 2: never.")] = (
        training.Plan.critic_from
    ),
    loudness: Annotated[
        float, typer.Option(help="Weight of the loudness difference while the encoder rests.")
    ] = training.Plan.loudness,
    judge_every: Annotated[int, typer.Option(help="Steps between looks at the validation recordings.")] = (
        training.Plan.judge_every
    ),
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    minutes: Annotated[float | None, typer.Option(help="Save and stop after this long.")] = None,
    folder: Folder = None,
) -> None:
    """Train, or resume where the last checkpoint stopped."""
    torch.set_num_threads(threads)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    plan = replace(
        training.Plan(),
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        scales=scales,
        critic_rows=critic_rows,
        critic_from=critic_from,
        loudness=loudness,
        judge_every=judge_every,
    )
    training.run(data, chosen, plan, folder=folder, minutes=minutes)


@app.command()
def evaluate(data: Data, folder: Folder = None, most: int = 1000, threads: int = 1) -> None:
    """Print the table of held-out figures for the best weights."""
    torch.set_num_threads(threads)
    evaluation.run(data, folder, most)


@app.command()
def words(folder: Folder = None) -> None:
    """Print word errors of the transcripts that ``recipes/codec/words.py`` made."""
    rates = judged_words.run((folder or places.cache("codec")) / "heldout")
    print(" ".join(f"{kind} {rate:.2f} %" for kind, rate in rates.items()))


@app.command()
def pack(data: Data, out: Path, mebibytes: float = 50.0) -> None:
    """Copy as much training data as fits, for a machine that cannot reach the rest."""
    print(f"{packing.run(data, out, mebibytes) / 2**20:.1f} MiB in {out}")


@app.command()
def figure(folder: Folder = None) -> None:
    """Draw the training log as an SVG beside it."""
    print(drawing.run(folder))


if __name__ == "__main__":
    app()

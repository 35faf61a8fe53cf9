"""Stage ``acoustic figure``: the training log as curves."""

from __future__ import annotations

from pathlib import Path

from .. import places


def run(folder: Path | None = None) -> Path:
    """Draw ``train.jsonl`` into ``train.svg`` (matplotlib, of the ``recipes`` extra) and return its path."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder = folder or places.cache("acoustic")
    events = places.Log(folder / "train.jsonl").read()
    steps = [e for e in events if e["event"] == "step"]
    judged = [e for e in events if e["event"] == "judge"]
    drawing, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), constrained_layout=True)
    for name, axis in (("loss", axes[0]), ("voice", axes[1])):
        axis.plot([e["step"] for e in steps], [e[name] for e in steps], lw=0.8)
        axis.set(title=f"training: {name}", xlabel="step")
    levels = [k for k in (judged[-1] if judged else {}) if k.startswith("nats ")]
    for name in levels:
        axes[2].plot([e["step"] for e in judged], [e[name] for e in judged], marker=".", label=name[5:])
    axes[2].set(title="validation: nats per code, by level", xlabel="step")
    axes[2].legend(ncols=2)
    path = folder / "train.svg"
    drawing.savefig(path)
    pyplot.close(drawing)
    return path

"""Stage ``codec figure``: the training log as curves."""

from __future__ import annotations

from pathlib import Path

from .. import places


def run(folder: Path | None = None) -> Path:
    """Draw ``train.jsonl`` into ``train.svg`` (matplotlib, of the ``recipes`` extra) and return its path."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder = folder or places.cache("codec")
    events = places.Log(folder / "train.jsonl").read()
    steps = [e for e in events if e["event"] == "step"]
    judged = [e for e in events if e["event"] == "judge"]
    drawing, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), constrained_layout=True)
    for name, axis in (("mel", axes[0]), ("compressed", axes[1])):
        axis.plot([e["step"] for e in steps], [e[name] for e in steps], lw=0.8)
        axis.set(title=f"training: {name}", xlabel="step", yscale="log")
    for name in ("pesq_wb", "stoi"):
        points = [(e["step"], e[name]) for e in judged if name in e and e["quantized"]]
        axes[2].plot(*zip(*points, strict=True) if points else ([], []), marker=".", label=name)
    axes[2].set(title="validation", xlabel="step")
    axes[2].legend()
    path = folder / "train.svg"
    drawing.savefig(path)
    pyplot.close(drawing)
    return path

"""One small bar chart per data stage, beside its log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def bars(path: Path, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Draw ``values`` by name into ``path`` (PNG). Without matplotlib it draws nothing and says so."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.name} is not drawn: matplotlib is missing (pip install 'speechssm[recipes]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(max(4.0, 0.26 * len(values) + 2), 3.2), layout="constrained")
    axes.bar(list(values), list(values.values()))
    axes.set(ylabel=unit, title=title)
    axes.tick_params(axis="x", rotation=90 if len(values) > 6 else 0)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

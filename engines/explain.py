"""Why the engines of a folder are, or are not, used again here, and the command that puts it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from speechssm.bundle import Bundle
from speechssm.errors import EngineError

from .builder import Environment, find_engine
from .cache import list_engines
from .index import EngineIndex, command, read_index
from .key import Flavour

Finder = Callable[[Flavour], Environment]


def explain(folder: Path, bundle: Bundle | None, find: Finder) -> Iterator[str]:
    """One line for every engine of ``folder``; with ``bundle``, whether each serves it here, and if not, why.

    ``find`` says what is installed for a flavour. Raises EngineError when the folder has no index.
    """
    index = read_index(folder)
    settings = index.settings
    yield (
        f"{folder}: engines of bundle {index.bundle} for {settings.engine}, {settings.precision}, "
        f"graphs {', '.join(index.graphs)}"
    )
    if bundle is None:
        yield from list_engines(folder)
        yield f"give the bundle as well to learn whether they serve it here: speechssm explain {folder} BUNDLE"
        return
    yield from against(folder, index, bundle, find)


def against(folder: Path, index: EngineIndex, bundle: Bundle, find: Finder) -> Iterator[str]:
    """Each engine against ``bundle`` and this machine."""
    again = command(index.settings, str(bundle.folder), folder)
    try:
        here = find(index.settings.engine)
    except EngineError as error:
        yield f"nothing here runs them: {error}"
        return
    if here.architecture is None:
        yield "no GPU is at hand: they can be checked here but not run"
    stale = False
    for graph in bundle.manifest.graphs:
        verdict = find_engine(bundle, graph, index, folder, here)
        stale |= verdict.engine is None
        yield f"{graph}: {'reused' if verdict.engine else f'not reused: {verdict}'}"
    if stale:
        yield f"to put it right: {again}"

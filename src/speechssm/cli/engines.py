"""``speechssm build`` and ``explain``: engines for a GPU, and why they are or are not used again."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from speechssm.bundle import open_bundle
from speechssm.engines.key import Flavour
from speechssm.engines.vendor import Progress

from . import options


class Engine(StrEnum):
    """Who runs the engines."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"


class Precision(StrEnum):
    """Type of the products with weights; norms, gates, recurrence, sampler and state are float32 always."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


_Plugin = Annotated[
    Path | None,
    typer.Option(help="Library with our operators; the one 'speechssm ext build' made when left out."),
]


def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    engine: Annotated[Engine, typer.Option(help="Who is to run them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the engines; may hold others.")],
    graph: Annotated[list[str] | None, typer.Option(help="Build this graph only; may be repeated.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="Type of the products with weights.")
    ] = Precision.FLOAT32,
    rows: Annotated[str, typer.Option(help="Rows of a step: smallest, likeliest, largest.")] = "1,1,64",
    batch: Annotated[str, typer.Option(help="Rows of every other graph.")] = "1,1,8",
    tokens: Annotated[str, typer.Option(help="Tokens of a prefill chunk.")] = "1,128,128",
    frames: Annotated[str, typer.Option(help="Frames of one call of the codec's decoder.")] = "1,100,100",
    arch: Annotated[
        list[str] | None,
        typer.Option(help="TensorRT-RTX: compile for sm_80, ... ahead of time; may be repeated."),
    ] = None,
    plugin: _Plugin = None,
    no_plugin: Annotated[
        bool, typer.Option("--no-plugin", help="Build the recurrence from standard operators.")
    ] = False,
    aliased: Annotated[
        bool, typer.Option("--aliased", help="Let the plugin update the step's recurrent state in place.")
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let float32 products round their factors to TF32.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Build an engine of every graph of BUNDLE; engines that are there already are used again."""
    from speechssm.engines.builder import build_engines, find_environment
    from speechssm.engines.index import BuildSettings
    from speechssm.engines.profiles import Profiles, parse_range

    settings = BuildSettings(
        engine=engine.value,
        precision=precision.value,
        profiles=Profiles(
            rows=parse_range("--rows", rows),
            batch=parse_range("--batch", batch),
            tokens=parse_range("--tokens", tokens),
            frames=parse_range("--frames", frames),
        ),
        architectures=tuple(arch or ()),
        plugin=not no_plugin,
        aliased=aliased,
        tf32=tf32,
    )
    checked = open_bundle(bundle)
    here = find_environment(engine.value, None if no_plugin else plugin or operators(engine.value))
    built = []
    for made in build_engines(checked, settings, out, here, graphs=tuple(graph or ()), progress=_progress):
        layers = ", ".join(f"{count} {kind}" for kind, count in list(made.layers.items())[:4])
        plugins = made.layers.get("PLUGIN_V3", 0)
        how = f"built in {made.seconds:.1f} s" if made.seconds else "reused"
        print(
            f"{made.graph}: {made.size_bytes / 1e6:.1f} MB, {how}; {sum(made.layers.values())} layers"
            + (f", {plugins} of the plugin" if plugins else "")
            + f" ({layers}, ...)"
        )
        built.append({"graph": made.graph, "engine": str(made.engine), "bytes": made.size_bytes})
        built[-1] |= {"seconds": made.seconds, "layers": made.layers}
    print(f"{out}: {len(built)} engines for {engine.value} {here.version}")
    if as_json:
        print(json.dumps({"engine": engine.value, "version": here.version, "graphs": built}))


def _progress(graph: str) -> Progress:
    """A bar on a terminal, silence elsewhere."""
    bar = tqdm(desc=graph, disable=None, leave=False, file=sys.stderr)

    def heard(phase: str, step: int, steps: int) -> None:
        bar.set_description_str(f"{graph}: {phase}", refresh=False)
        bar.total, bar.n = steps, step
        bar.refresh()
        if step >= steps:
            bar.clear()

    return heard


def operators(flavour: Flavour) -> Path | None:
    """The library with our operators for ``flavour``, if 'speechssm ext build' made it."""
    from speechssm.cpp_ext.build import find_library

    return find_library("ort" if flavour == "onnxruntime-cuda" else "trt")


def explain(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of engines.")],
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle folder, to learn whether they serve it here.")
    ] = None,
    plugin: _Plugin = None,
) -> None:
    """Say why each engine of DIR is or is not used again, and the command that puts it right."""
    from speechssm.engines.builder import find_environment
    from speechssm.engines.explain import explain as explain_engines

    checked = None if bundle is None else open_bundle(bundle)
    for line in explain_engines(
        folder, checked, lambda flavour: find_environment(flavour, plugin or operators(flavour))
    ):
        print(line)

"""``speechssm ext``: build the compiled extension; only those who want it need a compiler."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Preset(StrEnum):
    """CMake presets of cpp_ext."""

    HOST = "host"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    HARNESS = "harness"
    SANITIZE = "sanitize"


app = typer.Typer(
    help="Build the compiled extension (ONNX Runtime operators, CUDA kernels, TensorRT plugin).",
    no_args_is_help=True,
)


@app.command()
def build(
    preset: Annotated[Preset, typer.Argument(help="What to build.")] = Preset.HOST,
) -> None:
    """Compile the extension into the cache and print where it lies."""
    from speechssm.cpp_ext.build import build as build_preset

    print(build_preset(preset.value))


@app.command()
def headers() -> None:
    """Fetch the TensorRT headers (a small PyPI package, pinned by hash) for the plugin."""
    from speechssm.cpp_ext.build import install_headers

    print(install_headers())

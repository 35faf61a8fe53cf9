"""SpeechSSM runtime: continue speech from a prompt recording, for as long as asked.

model = speechssm.load()  # the demo voice, or a bundle's folder
model.generate("prompt.wav", seconds=20, seed=0).save("out.wav")

with model.open("prompt.wav", seed=0, ramp=True) as session:
    for audio in session.stream(seconds=60):  # float32 (n), 16 kHz
        play(audio)
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from speechssm.bundle import Bundle
    from speechssm.engines.loading import EngineGraphs
    from speechssm.runtime.model import Model

__version__ = "0.1.0.dev0"


def load(
    bundle: str | PathLike[str] | None = None,
    *,
    provider: Literal["cpu", "cuda"] = "cpu",
    threads: int = 0,
    native: bool = False,
    engines: str | PathLike[str] | None = None,
    low_memory: bool = False,
) -> Model:
    """Check a bundle and open its engines.

    Args:
        bundle: the folder that ``speechssm export`` wrote; the voice that ships when left out.
        provider: ONNX Runtime's CPU or CUDA execution provider.
        threads: threads of one engine call; 0 takes every core.
        native: run the recurrence on the operators that ``speechssm ext build`` compiled. Faster, and equal to a
            rounding: the same seed may come to another token after a while.
        engines: the folder that ``speechssm build`` wrote; graphs it lacks run on ONNX Runtime's CPU provider.
        low_memory: hold one copy of the language model's weights instead of two: the prefill engine is
            closed when no prompt is being read, and each new prompt waits for it to open again.

    Raises:
        BundleError: the bundle is missing, altered or of another version.
        EngineError: ONNX Runtime, the provider, the compiled operators or a fitting engine is missing.
    """
    from speechssm.bundle import open_bundle
    from speechssm.bundle.shipped import demo_voice
    from speechssm.engines.loading import BundleGraphs
    from speechssm.engines.ort import OrtOptions
    from speechssm.errors import SettingsError
    from speechssm.runtime.model import Model

    if low_memory and engines is not None:
        raise SettingsError(
            "low_memory closes engines of ONNX Runtime: leave it out beside engines that were built"
        )
    checked = open_bundle(demo_voice() if bundle is None else Path(bundle))
    options = OrtOptions(provider=provider, threads=threads, custom_ops=_operators() if native else None)
    built = None if engines is None else _engines(checked, Path(engines))
    graphs = BundleGraphs(checked, options, built)
    return Model(checked.manifest, checked.digest, graphs, graphs.release if low_memory else None)


def _operators() -> Path:
    from speechssm.cpp_ext.build import operators

    return operators()


def _engines(bundle: Bundle, folder: Path) -> EngineGraphs:
    from speechssm.cpp_ext.build import find_library
    from speechssm.engines.index import read_index
    from speechssm.engines.loading import EngineGraphs

    flavour = read_index(folder).settings.engine
    return EngineGraphs(bundle, folder, find_library("ort" if flavour == "onnxruntime-cuda" else "trt"))


__all__ = ["__version__", "load"]

"""SpeechSSM runtime: continue speech from a prompt recording, for as long as asked.

model = speechssm.load("bundle")
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
    from speechssm.runtime.model import Model

__version__ = "0.1.0.dev0"


def load(bundle: str | PathLike[str], *, provider: Literal["cpu", "cuda"] = "cpu", threads: int = 0) -> Model:
    """Check a bundle and open its engines.

    Args:
        bundle: the folder that ``speechssm export`` wrote.
        provider: ONNX Runtime's CPU or CUDA execution provider.
        threads: threads of one engine call; 0 takes every core.

    Raises:
        BundleError: the bundle is missing, altered or of another version.
        EngineError: ONNX Runtime or the provider is missing.
    """
    from speechssm.bundle import open_bundle
    from speechssm.engines.loading import BundleGraphs
    from speechssm.engines.ort import OrtOptions
    from speechssm.runtime.model import Model

    checked = open_bundle(Path(bundle))
    graphs = BundleGraphs(checked, OrtOptions(provider=provider, threads=threads))
    return Model(checked.manifest, checked.digest, graphs)


__all__ = ["__version__", "load"]

"""A byte changed in any file after the export."""

import numpy as np
import pytest

from speechssm.bundle import open_bundle
from speechssm.errors import BundleError

from .attack import HostileBundle


def test_refused(bundle: HostileBundle, rng: np.random.Generator) -> None:
    for name in [p.name for p in bundle.folder.iterdir() if p.name != "manifest.json"]:
        content = bytearray(bundle.path(name).read_bytes())
        # Behind the header of a weight file, whose own rules might be broken first.
        place = int(rng.integers(len(content) // 2, len(content)))
        content[place] ^= 1 << int(rng.integers(8))
        true = bundle.path(name).read_bytes()
        bundle.path(name).write_bytes(content)
        with pytest.raises(BundleError, match="its sha256 is not the manifest's"):
            open_bundle(bundle.folder)
        bundle.path(name).write_bytes(true)
    bundle.path("lm_step.onnx").write_bytes(bytes(bundle.path("lm_step.onnx").stat().st_size))
    bundle.is_refused("was altered or damaged")

"""A pickle under the name of a weight file or a graph: it must never be run."""

import os
import pickle
from pathlib import Path

import pytest

from .attack import HostileBundle

RAN = Path("/tmp") / f"speechssm-pickle-ran-{os.getpid()}"


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(RAN),))


@pytest.mark.parametrize("name", ["lm.safetensors", "lm_step.onnx"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_refused(bundle: HostileBundle, name: str, protocol: int) -> None:
    bundle.put(name, pickle.dumps(Trap(), protocol))
    bundle.is_refused(name)
    assert not RAN.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    """Control: where it is unpickled, it runs."""
    pickle.loads(pickle.dumps(Trap()))
    assert RAN.is_dir()
    RAN.rmdir()

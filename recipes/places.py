"""Where the recipes read and write: data given on the command line, everything made kept in a cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

__all__ = [
    "Log",
    "cache",
    "checkpoint",
    "load_arrays",
    "load_tensors",
    "partial",
    "read_json",
    "resume",
    "write_arrays",
    "write_json",
    "write_tensors",
]


def cache(*parts: str) -> Path:
    """``$SPEECHSSM_CACHE`` or ``~/.cache/speechssm``, then ``recipes`` and ``parts``; made when missing."""
    root = Path(os.environ.get("SPEECHSSM_CACHE") or Path.home() / ".cache" / "speechssm")
    path = root.joinpath("recipes", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that replaces it only when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write numpy arrays as safetensors, whole or not at all."""
    with partial(path) as temporary:
        save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write torch tensors as safetensors, whole or not at all."""
    with partial(path) as temporary:
        save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    with partial(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def checkpoint(
    path: Path,
    model: torch.nn.Module,
    average: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    step: int,
) -> None:
    """Everything a resumed run needs, in one safetensors file, replaced whole."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["step"] = torch.tensor(step)
    write_tensors(path, tensors)


def resume(
    path: Path, model: torch.nn.Module, average: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer
) -> int:
    """Load what :func:`checkpoint` wrote, in place; the step to go on with."""
    tensors = load_tensors(path)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for name in average:
        average[name].copy_(tensors[f"average.{name}"])
    saved = optimiser.state_dict()
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
    saved["state"] = states
    optimiser.load_state_dict(saved)
    return int(tensors["step"])


class Log:
    """A JSON line per event, appended, so that a resumed run continues its own log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, **event: Any) -> None:
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in event.items()})
        with self.path.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
        print(line, flush=True)

    def read(self) -> list[dict[str, Any]]:
        """Every event so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

"""Checkpoint files on disk: safetensors only, one file or shards with an index, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.bundle import tensors
from speechssm.bundle.manifest import is_plain
from speechssm.bundle.tensors import TensorEntry
from speechssm.errors import BundleError, ExportError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of formats that can run code when they are read."""
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
INDEX_BYTES = 64 << 20
"""Largest index or settings file that is read."""


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files as float32 arrays, read when they are asked for.

    Every header is checked when this is made. Raises ExportError for a damaged header, a tensor in two
    files, a type that is not a float, and, when a tensor is read, for a number that is not finite.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.metadata: dict[str, str] = {}
        self.entries: dict[str, tuple[Path, TensorEntry]] = {}
        for path in paths:
            refuse_pickle(path)
            try:
                entries, metadata = tensors.read_header_and_metadata(path)
            except BundleError as error:
                raise ExportError(f"{error}: fetch or convert the checkpoint again") from error
            self.metadata.update(metadata)
            for name, entry in entries.items():
                if name in self.entries:
                    raise ExportError(
                        f"tensor {name} is in both {self.entries[name][0].name} and {path.name}: "
                        "the folder mixes two checkpoints"
                    )
                if entry.dtype not in _DTYPES:
                    raise ExportError(
                        f"tensor {name} of {path.name} is {entry.dtype}: expected float32, float16, bfloat16 "
                        "or float64 weights; convert quantized checkpoints back first"
                    )
                self.entries[name] = (path, entry)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self.entries[name][1].shape

    def __getitem__(self, name: str) -> np.ndarray:
        path, entry = self.entries[name]
        dtype = _DTYPES[entry.dtype]
        with path.open("rb") as file:
            file.seek(entry.offset)
            array: np.ndarray = np.fromfile(file, dtype, entry.length // dtype.itemsize)
        if array.nbytes != entry.length:
            raise ExportError(f"{path.name} ends within tensor {name}: fetch the checkpoint again")
        if entry.dtype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        # A float64 beyond the float32 range would become infinite.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False).reshape(entry.shape)
        if not np.isfinite(array).all():
            at = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
            raise ExportError(
                f"tensor {name} of {path.name} holds {array[at]} at {tuple(int(i) for i in at)}: "
                "expected finite weights, the checkpoint is damaged"
            )
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a safetensors file, or of a folder with one, with several, or with shards and an index.

    Raises ExportError when there are none, when they would have to be unpickled, or when the index and
    the files disagree.
    """
    if path.is_file():
        return TensorFiles([path])
    if not path.is_dir():
        raise ExportError(
            f"there is no checkpoint at {path}: give a .safetensors file or a folder that holds one"
        )
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise ExportError(f"{path} holds {len(indices)} index files: expected one checkpoint to a folder")
    if indices:
        return _sharded(indices[0])
    files = sorted(path.glob("*.safetensors"))
    if not files:
        for found in sorted(path.iterdir()):
            refuse_pickle(found)
        raise ExportError(f"{path} holds no .safetensors file: it is not a checkpoint this exporter reads")
    return TensorFiles(files)


def refuse_pickle(path: Path) -> None:
    """ExportError, with the command that converts, when ``path`` is or looks like a pickle."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file begins with the length of its header, whose low bytes may look like anything, then "{".
    safe = head[4:] == b"\0\0\0\0{"
    archive = head[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    if path.suffix.lower() not in PICKLES and (safe or not archive):
        return
    raise ExportError(
        f"{path} is a pickle or archive, which may run code when it is read, so it is refused: "
        f"convert it with: {conversion(path)}"
    )


def conversion(path: Path) -> str:
    """The shell command that turns a PyTorch file into safetensors, without running code from it."""
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"d = torch.load('{path}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in d.items()}}, '{path.with_suffix('.safetensors')}')\""
    )


def read_json(path: Path, what: str) -> dict[str, object]:
    """A JSON object from a file of bounded size. Raises ExportError naming ``what`` it should have been."""
    try:
        if not path.is_file():
            raise ExportError(f"{path} is not there, or not a file: {what} is missing, fetch it again")
        with path.open("rb") as file:
            raw = file.read(INDEX_BYTES + 1)
        if len(raw) > INDEX_BYTES:
            raise ExportError(f"{path} is larger than {INDEX_BYTES} bytes: it is not {what}")
        table = json.loads(raw.decode())
    except OSError as error:
        raise ExportError(f"cannot read {path}, {what}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {what} is damaged") from error
    if not isinstance(table, dict):
        raise ExportError(f"{path} is not {what}: expected a JSON object")
    return table


def _sharded(index: Path) -> TensorFiles:
    where = read_json(index, "an index of shards").get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) and is_plain(v) for v in where.values()):
        raise ExportError(f"{index} has no weight_map of plain file names: the index is damaged")
    paths = [index.parent / name for name in sorted(set(where.values()))]
    for path in paths:
        if not path.is_file():
            raise ExportError(f"{index.name} names the shard {path.name}, which is not there: fetch it again")
    files = TensorFiles(paths)
    for name, file in where.items():
        if name not in files or files.entries[name][0].name != file:
            raise ExportError(f"{index.name} says that tensor {name} is in {file}, but it is not there")
    return files

"""Reading and writing safetensors headers; the small trusted core under bundles and snapshots.

Reading goes through the header only, so that names, sizes and offsets are checked before a byte of
data is mapped. Writing streams: the header is computed from shapes, then each tensor is made, written
and dropped, so that a large export needs memory for one tensor at a time.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechssm.errors import BundleError

from . import limits

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "U4": 1,
    "F8_E4M3": 1,
    "BOOL": 1,
}
"""Bytes of one element by safetensors type name."""


BLOCK_BYTES = 1 << 20
"""Bytes of weights in memory at a time; a whole number of elements of every type."""
_FLOATS: dict[str, np.dtype[np.floating]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4")}
# numpy has no bfloat16, and looks at float16 ten times more slowly than at its bits.
_EXPONENTS = {"F16": (np.dtype("<u2"), 0x7C00), "BF16": (np.dtype("<u2"), 0x7F80)}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: type name, shape, and byte range in the file (not in the data section)."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_header(path: Path, *, largest_bytes: int = limits.PART_BYTES) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name.

    Raises BundleError when the header is longer than the limit, is not JSON, names a tensor twice, or
    describes ranges that overlap, leave holes, leave the file or do not fit their shape.
    """
    entries, _ = read_header_and_metadata(path, largest_bytes=largest_bytes)
    return entries


def read_header_and_metadata(
    path: Path, *, largest_bytes: int = limits.PART_BYTES
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """As :func:`read_header`, with the file's string metadata."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a file: give the path of a safetensors file")
        size = status.st_size
        if size > largest_bytes:
            raise BundleError(f"{path.name} has {size} bytes, more than the limit of {largest_bytes}")
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise BundleError(f"{path.name} is not a safetensors file: it is only {size} bytes long")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(limits.TENSOR_HEADER_BYTES, size - 8):
                raise BundleError(
                    f"{path.name} is not a safetensors file: its header claims {length} bytes, the file has "
                    f"{size} and the limit is {limits.TENSOR_HEADER_BYTES}"
                )
            raw = file.read(length)
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return _parse_header(path.name, raw, data_start=8 + length, size=size)


def _parse_header(
    name: str, raw: bytes, *, data_start: int, size: int
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict) or len(header) > limits.TENSORS:
        raise BundleError(f"{name}: the header is not a table of at most {limits.TENSORS} tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BundleError(f"{name}: __metadata__ is not a table of strings")
    entries = {key: _entry(name, key, value, data_start) for key, value in header.items()}
    expected = data_start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].length)):
        if entry.offset != expected:
            raise BundleError(
                f"{name}: tensor {key} starts at byte {entry.offset}, expected {expected}: overlap or hole"
            )
        expected += entry.length
    if expected != size:
        raise BundleError(
            f"{name} holds {size} bytes but its header describes {expected}: truncated or padded"
        )
    return entries, metadata


def _entry(name: str, key: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise BundleError(f"{name}: tensor {key} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list)
    if not lists or len(shape) > limits.RANK or len(offsets) != 2:
        raise BundleError(f"{name}: tensor {key} needs a shape of at most {limits.RANK} axes and two offsets")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, *offsets)):
        raise BundleError(f"{name}: tensor {key} has a size or offset that is not a whole number")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BundleError(f"{name}: tensor {key} has an element type that is not read here")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise BundleError(f"{name}: tensor {key} of shape {shape} cannot have {end - start} bytes")
    return TensorEntry(dtype, tuple(shape), data_start + start, end - start)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def read_blocks(path: Path, entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, str, bytes]]:
    """A whole safetensors file in order and in bounded memory: tensor name, type name, bytes.

    The header comes first, under the name "". Raises BundleError when the file ends early.
    """
    inside = sorted((e.offset, name) for name, e in entries.items() if e.length)
    start = inside[0][0] if inside else path.stat().st_size
    with path.open("rb") as file:
        yield "", "U8", file.read(start)
        for offset, name in inside:
            entry = entries[name]
            for done in range(0, entry.length, BLOCK_BYTES):
                block = file.read(min(BLOCK_BYTES, entry.length - done))
                if len(block) < min(BLOCK_BYTES, entry.length - done):
                    raise BundleError(
                        f"{path.name} ended at byte {offset + done + len(block)}: it was changed just now"
                    )
                yield name, entry.dtype, block


def finite(block: bytes, dtype: str) -> bool:
    """Whether every float of a block is a number; integers always are."""
    if dtype in _EXPONENTS:
        kind, exponent = _EXPONENTS[dtype]
        # An exponent of all ones is an infinity or NaN.
        bits = np.frombuffer(block, kind) & exponent
        return bool(bits.max(initial=0) < exponent)
    if dtype == "F8_E4M3":  # no infinity; all ones but the sign is NaN
        return bool((np.frombuffer(block, np.uint8) & 0x7F).max(initial=0) < 0x7F)
    return dtype not in _FLOATS or bool(np.isfinite(np.frombuffer(block, _FLOATS[dtype])).all())


def layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Length prefix and header of a file holding ``tensors`` (name to type name and shape), in that order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        length = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    raw = json.dumps(header, separators=(",", ":")).encode()
    # 64-byte alignment lets engines map float data straight from the file.
    raw += b" " * (-(len(raw) + 8) % 64)
    return struct.pack("<Q", len(raw)) + raw


def write(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file tensor by tensor; ``arrays`` come in the order of ``tensors``.

    bfloat16 and packed types are passed as unsigned integers of the same width.
    """
    with path.open("wb") as file:
        file.write(layout(tensors, metadata))
        for (name, (dtype, shape)), array in zip(tensors.items(), arrays, strict=True):
            if array.nbytes != math.prod(shape) * ITEM_BYTES[dtype]:
                raise BundleError(
                    f"tensor {name} has {array.nbytes} bytes where {dtype} {shape} was declared"
                )
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())

"""Read a CTranslate2 ``model.bin`` (version 6): a plain list of named arrays, no code.

Layout, little endian: u32 version; string spec; u32 revision; u32 number of variables; for each a
string name, u8 rank, u32 per dimension, u8 dtype, u32 bytes, the data; then the aliases. A string is a
u16 length and that many bytes, the last one zero.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssm.errors import SpeechSSMError

VERSION = 6
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from("<" + kind, self.data, self.at)[0]
        self.at += struct.calcsize(kind)
        return value

    def string(self) -> str:
        return self.bytes(self.number("H"))[:-1].decode()

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise SpeechSSMError(
                f"model.bin ends at byte {len(self.data)}, inside an array: download it again"
            )
        self.at += count
        return self.data[self.at - count : self.at]


def read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Every array of a version 6 ``model.bin``, by name; aliases share their array."""
    reader = _Reader(path.read_bytes())
    version = reader.number("I")
    if version != VERSION:
        raise SpeechSSMError(f"{path} is CTranslate2 format {version}; this reader knows {VERSION} only")
    reader.string()
    reader.number("I")
    arrays: dict[str, NDArray[np.generic]] = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = tuple(reader.number("I") for _ in range(reader.number("B")))
        dtype = np.dtype(_DTYPES[reader.number("B")]).newbyteorder("<")
        arrays[name] = np.frombuffer(reader.bytes(reader.number("I")), dtype).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.string()
        arrays[alias] = arrays[reader.string()]
    return arrays

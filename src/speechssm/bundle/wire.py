"""The protobuf wire format, read forwards by a table of fields; the trusted core under the graph check.

Stricter than the parser it guards, so that the two cannot read a file differently: a field that the
table lacks, a single field given twice (parsers merge or overwrite), a number written longer than it
need be and a group are all refused. Nothing is copied and nothing is allocated by a length that a
file claims; every field costs one of a budget that bounds time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: a whole number, 8 bytes, a length and that many bytes, 4 bytes."""

Span = tuple[int, int]
"""First byte and the byte past the last."""


class WireError(ValueError):
    """The bytes are not what they should be; the text is the middle of a sentence."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its name, wire type, and whether it may come more than once."""

    name: str
    wire: int
    many: bool = False


Message = Mapping[int, Field]
"""A message by field number."""


@dataclass(slots=True)
class Budget:
    """How many more fields may be read."""

    left: int


def scan(raw: bytes, span: Span, message: Message, budget: Budget) -> Iterator[tuple[str, int | Span]]:
    """Fields of one message, in file order: name, and the number or where its bytes lie.

    A repeated number may come packed: then the bytes of all of them are given. Raises WireError.
    """
    at, end = span
    seen: set[int] = set()
    while at < end:
        budget.left -= 1
        if budget.left < 0:
            raise WireError("it has more fields than any graph needs")
        key, at = varint(raw, at, end)
        field = message.get(key >> 3)
        if field is None:
            raise WireError(f"field {key >> 3} is not one that a bundle's graphs use")
        if not field.many:
            if key in seen:
                raise WireError(f"its {field.name} is given twice")
            seen.add(key)
        wire = key & 7
        packed = wire == BYTES and field.many
        if wire != field.wire and not packed:
            raise WireError(f"its {field.name} is written as another type")
        if wire == VARINT:
            value, at = varint(raw, at, end)
            yield field.name, value
            continue
        if wire == BYTES:
            size, at = varint(raw, at, end)
        else:
            size = 8 if wire == FIXED64 else 4
        if size > end - at:
            raise WireError(f"its {field.name} runs past the end")
        if packed and field.wire != BYTES and not _is_packed(raw, at, at + size, field.wire):
            raise WireError(f"its {field.name} is cut short")
        yield field.name, (at, at + size)
        at += size


# Nine bytes of a number may say that another follows, a tenth may not.
_ENDLESS = re.compile(rb"[\x80-\xff]{10}")


def _is_packed(raw: bytes, at: int, end: int, wire: int) -> bool:
    """Whether the bytes are whole numbers of that wire type, one behind the other."""
    if wire == VARINT:
        return at == end or (raw[end - 1] < 0x80 and _ENDLESS.search(raw, at, end) is None)
    return (end - at) % (8 if wire == FIXED64 else 4) == 0


def varint(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """The unsigned number at ``at`` and the place behind it. Raises WireError when it is not canonical."""
    if at < end and raw[at] < 0x80:
        return raw[at], at + 1
    value = 0
    for shift in range(0, 64, 7):
        if at >= end:
            raise WireError("a number runs past the end")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 or value >> 64:
                break
            return value, at
    raise WireError("a number is written too long")


def varints(raw: bytes, value: int | Span) -> list[int]:
    """The numbers of a repeated field as :func:`scan` gave it: one, or packed ones."""
    if isinstance(value, int):
        return [value]
    at, end = value
    numbers = []
    while at < end:
        number, at = varint(raw, at, end)
        numbers.append(number)
    return numbers


def text(raw: bytes, value: int | Span) -> str:
    """The text of a field of bytes. Raises WireError when it is not UTF-8."""
    assert not isinstance(value, int)
    try:
        return raw[value[0] : value[1]].decode()
    except UnicodeDecodeError as error:
        raise WireError("a name is not UTF-8") from error


def signed(value: int) -> int:
    """A number as the 64-bit two's complement that protobuf's int64 means by it."""
    return value - (1 << 64) if value >> 63 else value

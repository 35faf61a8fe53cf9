"""Damage, reproducible by seed: of bytes, of JSON tables and of protobuf messages."""

from __future__ import annotations

import copy
import json
import marshal
import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

EXTREMES = tuple(
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)
WORDS = (
    b"null", b"-1", b"1e999", b"NaN", b'"\\u0000"', b"{}", b"[]", b"9" * 30, b"9" * 5000, b"[" * 2000, b'{"a":' * 999,
    b"true", b"../", b"\xff", b"\x1b[2J", b'"__metadata__"', b"-0", b"1.5",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, 1.5, 1e308, float("inf"), float("nan"), "", "b",
    "x" * 3000, "\x1b[2J", "\u202e", "\ud800", "../x", "/etc/passwd", "a\nb", [], [0], [[]], {}, {"a": 1},
    "float32", "lm.safetensors",
)  # fmt: skip
NAMES = (
    "", "speechssm", "com.microsoft", "ai.onnx", "lm.safetensors", "../x", "location", "offset", "0", "64", "F", "G",
    "Identity", "x", "b", "\x1b[2J", "9" * 30,
)  # fmt: skip


def damaged_bytes(rng: random.Random, content: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """``content`` with a few bytes bent, mostly near its start."""
    out = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        end = min(len(out), 300) if rng.random() < 0.5 else len(out)
        place = rng.randrange(max(1, end))
        match rng.randrange(8):
            case 0:
                out[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if out:
                out[place] ^= 1 << rng.randrange(8)
            case 2:
                value = rng.choice(EXTREMES)
                out[place : place + len(value)] = value
            case 3:
                del out[place : place + rng.randrange(1, 64)]
            case 4:
                start = rng.randrange(max(1, len(out)))
                out[place:place] = out[start : start + rng.randrange(1, 64)]
            case 5:
                out[place:place] = rng.choice(WORDS)
            case 6 if others:
                other = rng.choice(others)
                start = rng.randrange(max(1, len(other)))
                out[place:place] = other[start : start + rng.randrange(1, 64)]
            case _:
                if rng.random() < 0.2:
                    del out[place:]
    return bytes(out)


def damaged_table(rng: random.Random, table: Any) -> Any:
    """A JSON value with a few places changed, removed, repeated or swapped."""
    table = _copied(table)
    for _ in range(rng.randrange(1, 4)):
        spot, other = _spot(rng, table), _spot(rng, table)
        if spot is None or other is None:
            return rng.choice(VALUES)
        holder, key = spot
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = _copied(other[0][other[1]])
            case 2 if isinstance(holder, dict):
                holder[rng.choice(("extra", "", "__metadata__", "\x1b[2J", "x" * 300))] = holder[key]
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] += rng.choice((-1, 1, 0.5, 640, 2**32))
            case _:
                holder[key] = _copied(rng.choice(VALUES))
    return table


def _copied(value: Any) -> Any:
    """A deep copy; of plain tables this is ten times faster than the copy module's."""
    return marshal.loads(marshal.dumps(value))


def _spot(rng: random.Random, value: Any) -> tuple[Any, Any] | None:
    """A (holder, key) found by going down at random, so that every level has its share."""
    found = None
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        found = (value, key)
        if rng.random() < 0.3:
            break
        value = value[key]
    return found


def damaged_json(rng: random.Random, table: Any) -> bytes:
    """A table as bytes, damaged as a table or as text."""
    if rng.random() < 0.7:
        table = damaged_table(rng, table)
        text = json.dumps(table, allow_nan=True).encode()
        return text if rng.random() < 0.8 else damaged_bytes(rng, text)
    return damaged_bytes(rng, json.dumps(table).encode())


# ---- protobuf ----------------------------------------------------------------------------------------


def damaged_message(rng: random.Random, message: Message) -> bytes:
    """A message with a few fields changed, anywhere in its tree, as bytes; sometimes those are bent too."""
    message = copy.deepcopy(message)
    for _ in range(rng.randrange(1, 4)):
        _bend(rng, rng.choice(_tree(message)))
    raw = message.SerializePartialToString()
    return raw if rng.random() < 0.7 else damaged_bytes(rng, raw)


def _tree(message: Message) -> list[Message]:
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                found += _tree(inner)
    return found


def _bend(rng: random.Random, message: Message) -> None:
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        values = getattr(message, field.name)
        if values and rng.random() < 0.3:
            del values[rng.randrange(len(values))]
        elif values and rng.random() < 0.5:
            values.extend([values[rng.randrange(len(values))]] * rng.randrange(1, 12))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            values.add()
        else:
            values.append(_scalar(rng, field))
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if message.HasField(field.name) and rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
            # A message inside itself, a level deeper each time.
            if inner.DESCRIPTOR is message.DESCRIPTOR and message.ByteSize() < 20_000:
                inner.CopyFrom(copy.deepcopy(message))
    else:
        setattr(message, field.name, _scalar(rng, field))


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        word = rng.choice(NAMES)
        return word.encode() if field.type == FieldDescriptor.TYPE_BYTES else word
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, float("inf"), float("nan")))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    high = 31 if kind == FieldDescriptor.CPPTYPE_INT32 else 63
    low = 0 if kind == FieldDescriptor.CPPTYPE_UINT64 else -(1 << high)
    return rng.choice((0, 1, 2, 7, 16, 23, (1 << high) - 1, low, low // 2))

"""The wire reader against protobuf's own writer, and where it is stricter than protobuf's reader."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssm.bundle import onnx_schema, wire

NUMBERS = st.integers(0, (1 << 64) - 1)


def encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@given(NUMBERS, st.binary(max_size=5), st.binary(max_size=5))
def test_numbers_round_trip(value: int, before: bytes, behind: bytes) -> None:
    raw = before + encoded(value) + behind
    end = len(raw) - len(behind)
    assert wire.varint(raw, len(before), len(raw)) == (value, end)
    assert wire.varint(raw, len(before), end) == (value, end)
    with pytest.raises(wire.WireError, match="past the end"):
        wire.varint(raw, len(before), end - 1)


@given(NUMBERS, st.integers(1, 8))
def test_padded_numbers_are_refused(value: int, zeros: int) -> None:
    raw = bytearray(encoded(value))
    raw[-1] |= 128
    raw += b"\x80" * (zeros - 1) + b"\x00"
    with pytest.raises(wire.WireError, match="too long"):
        wire.varint(bytes(raw), 0, len(raw))


@given(st.integers(1 << 64, (1 << 70) - 1))
def test_numbers_beyond_64_bits_are_refused(value: int) -> None:
    raw = encoded(value)
    with pytest.raises(wire.WireError, match="too long"):
        wire.varint(raw, 0, len(raw))


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_signed_is_protobuf_s_int64(value: int) -> None:
    raw = onnx.AttributeProto(i=value).SerializeToString()
    assert raw[0] == 3 << 3
    number, end = wire.varint(raw, 1, len(raw))
    assert (wire.signed(number), end) == (value, len(raw))


@given(
    st.lists(st.integers(0, (1 << 63) - 1), max_size=6),
    st.lists(st.floats(width=32), max_size=6),
    st.text(max_size=20),
    st.binary(max_size=30),
    st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=3),
)
def test_fields_are_found_as_protobuf_wrote_them(
    dims: list[int], floats: list[float], name: str, raw_data: bytes, entries: list[tuple[str, str]]
) -> None:
    tensor = onnx.TensorProto(dims=dims, data_type=1, float_data=floats, name=name, raw_data=raw_data)
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    raw = tensor.SerializeToString()
    found = list(wire.scan(raw, (0, len(raw)), onnx_schema.TENSOR, wire.Budget(1000)))
    assert [n for f, value in found if f == "dims" for n in wire.varints(raw, value)] == dims
    assert [wire.text(raw, value) for f, value in found if f == "name"] == [name]
    (data,) = (value for f, value in found if f == "raw_data")
    assert not isinstance(data, int)
    assert raw[data[0] : data[1]] == raw_data
    pairs = []
    for f, value in found:
        if f == "external_data":
            assert not isinstance(value, int)
            parts = dict(wire.scan(raw, value, onnx_schema.ENTRY, wire.Budget(2)))
            pairs.append((wire.text(raw, parts["key"]), wire.text(raw, parts["value"])))
    assert pairs == entries


@given(st.binary(max_size=40))
def test_any_bytes_end_soon(raw: bytes) -> None:
    """Garbage is read or refused, never more fields than bytes and never outside them."""
    for message in (onnx_schema.MODEL, onnx_schema.TENSOR, onnx_schema.NODE):
        try:
            found = list(wire.scan(raw, (0, len(raw)), message, wire.Budget(100)))
        except wire.WireError:
            continue
        assert len(found) <= len(raw)
        assert all(isinstance(v, int) or 0 <= v[0] <= v[1] <= len(raw) for _, v in found)


def test_the_budget_ends_a_long_file() -> None:
    raw = b"\x0a\x00" * 11
    assert len(list(wire.scan(raw, (0, 22), onnx_schema.NODE, wire.Budget(11)))) == 11
    with pytest.raises(wire.WireError, match="more fields"):
        list(wire.scan(raw, (0, 22), onnx_schema.NODE, wire.Budget(10)))

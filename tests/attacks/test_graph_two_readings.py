"""Bytes that two protobuf readers could take differently: fields twice, unknown fields, padded numbers."""

import pytest

from .attack import HostileBundle

UNKNOWN = b"\xfa\x3f\x01x"  # field 1023
TAILS = {
    "is given twice": b"\x08\x0b",  # ir_version again: the last one wins
    "its graph is given twice": b"\x3a\x00",  # the graph again: parsers merge the two
    "field 1023": UNKNOWN,
    "field 20": b"\xa2\x01\x00",  # training graphs
    "field 26": b"\xd2\x01\x00",  # device configurations
    "is written as another type": b"\x42\x00\x40\x00",
    "a number is written too long": b"\x28\x81\x80\x00",
    "runs past the end": b"\x32\x7f",
    "a number runs past the end": b"\x80",
}


@pytest.mark.parametrize("why", TAILS)
def test_refused(bundle: HostileBundle, why: str) -> None:
    bundle.put("lm_step.onnx", bundle.path("lm_step.onnx").read_bytes() + TAILS[why])
    bundle.is_refused(why)

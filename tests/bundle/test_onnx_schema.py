"""The field tables against the onnx package's own description of its messages."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import TensorProto, helper

from speechssm.bundle import onnx_schema, wire

MESSAGES = {
    "MODEL": onnx.ModelProto,
    "GRAPH": onnx.GraphProto,
    "NODE": onnx.NodeProto,
    "ATTRIBUTE": onnx.AttributeProto,
    "TENSOR": onnx.TensorProto,
    "FUNCTION": onnx.FunctionProto,
    "VALUE": onnx.ValueInfoProto,
    "TYPE": onnx.TypeProto,
    "TENSOR_TYPE": onnx.TypeProto.Tensor,
    "SHAPE": onnx.TensorShapeProto,
    "DIMENSION": onnx.TensorShapeProto.Dimension,
    "ENTRY": onnx.StringStringEntryProto,
    "OPSET": onnx.OperatorSetIdProto,
}
REFUSED = {
    "ModelProto": {"training_info", "configuration"},
    "GraphProto": {"sparse_initializer", "quantization_annotation"},
    "NodeProto": {"device_configurations"},
    "AttributeProto": {"sparse_tensor", "sparse_tensors", "tp", "type_protos"},
    "TensorProto": {"segment", "string_data"},
    "TypeProto": {"sequence_type", "map_type", "optional_type", "sparse_tensor_type", "opaque_type"},
}
"""What the tables leave out on purpose."""
WIRES = {
    FieldDescriptor.TYPE_INT32: wire.VARINT,
    FieldDescriptor.TYPE_INT64: wire.VARINT,
    FieldDescriptor.TYPE_UINT64: wire.VARINT,
    FieldDescriptor.TYPE_ENUM: wire.VARINT,
    FieldDescriptor.TYPE_FLOAT: wire.FIXED32,
    FieldDescriptor.TYPE_DOUBLE: wire.FIXED64,
    FieldDescriptor.TYPE_STRING: wire.BYTES,
    FieldDescriptor.TYPE_BYTES: wire.BYTES,
    FieldDescriptor.TYPE_MESSAGE: wire.BYTES,
}


@pytest.mark.parametrize("name", MESSAGES)
def test_tables_are_onnx_s_own(name: str) -> None:
    descriptor: Descriptor = MESSAGES[name].DESCRIPTOR
    table: wire.Message = getattr(onnx_schema, name)
    described = {f.number: f for f in descriptor.fields}
    refused = {f.name for n, f in described.items() if n not in table}
    # A field that onnx adds later is refused until someone has looked at it; then it is listed above.
    assert refused == REFUSED.get(descriptor.name, set())
    for number, field in table.items():
        theirs = described[number]
        assert (field.name, field.wire, field.many) == (theirs.name, WIRES[theirs.type], theirs.is_repeated)


def test_element_sizes() -> None:
    for number, bits in onnx_schema.TENSOR_BITS.items():
        name = TensorProto.DataType.Name(number)
        if bits == 4:
            assert name in ("UINT4", "INT4", "FLOAT4E2M1")
        else:
            assert bits == 8 * helper.tensor_dtype_to_np_dtype(number).itemsize, name
    refused = {"UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128"}
    assert not any(TensorProto.DataType.Value(name) in onnx_schema.TENSOR_BITS for name in refused)


@pytest.mark.parametrize("kind", sorted(onnx_schema.TENSOR_BITS))
def test_typed_fields_are_onnx_s(kind: int) -> None:
    field = helper.tensor_dtype_to_field(kind)
    assert kind in onnx_schema.TYPED_DATA[field]


def test_value_types() -> None:
    for number, name in onnx_schema.VALUE_TYPES.items():
        assert np.dtype(name) == helper.tensor_dtype_to_np_dtype(number)

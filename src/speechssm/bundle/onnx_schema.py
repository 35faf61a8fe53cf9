"""The ONNX messages a bundle's graphs are made of, as tables for :mod:`.wire` (onnx.proto, IR version 11).

What is not here is refused: sparse tensors, strings as weights, sequences and maps, training graphs and
device configurations are in no graph of ours. ``tests/bundle/test_onnx_schema.py`` holds the tables to
the onnx package's own description.
"""

from .wire import BYTES, FIXED32, FIXED64, VARINT, Field, Message

ENTRY: Message = {1: Field("key", BYTES), 2: Field("value", BYTES)}
"""StringStringEntryProto."""

OPSET: Message = {1: Field("domain", BYTES), 2: Field("version", VARINT)}
"""OperatorSetIdProto."""

TENSOR: Message = {
    1: Field("dims", VARINT, many=True),
    2: Field("data_type", VARINT),
    4: Field("float_data", FIXED32, many=True),
    5: Field("int32_data", VARINT, many=True),
    7: Field("int64_data", VARINT, many=True),
    8: Field("name", BYTES),
    9: Field("raw_data", BYTES),
    10: Field("double_data", FIXED64, many=True),
    11: Field("uint64_data", VARINT, many=True),
    12: Field("doc_string", BYTES),
    13: Field("external_data", BYTES, many=True),
    14: Field("data_location", VARINT),
    16: Field("metadata_props", BYTES, many=True),
}
"""TensorProto."""

DIMENSION: Message = {
    1: Field("dim_value", VARINT),
    2: Field("dim_param", BYTES),
    3: Field("denotation", BYTES),
}
"""TensorShapeProto.Dimension."""

SHAPE: Message = {1: Field("dim", BYTES, many=True)}
"""TensorShapeProto."""

TENSOR_TYPE: Message = {1: Field("elem_type", VARINT), 2: Field("shape", BYTES)}
"""TypeProto.Tensor."""

TYPE: Message = {1: Field("tensor_type", BYTES), 6: Field("denotation", BYTES)}
"""TypeProto."""

VALUE: Message = {
    1: Field("name", BYTES),
    2: Field("type", BYTES),
    3: Field("doc_string", BYTES),
    4: Field("metadata_props", BYTES, many=True),
}
"""ValueInfoProto."""

ATTRIBUTE: Message = {
    1: Field("name", BYTES),
    2: Field("f", FIXED32),
    3: Field("i", VARINT),
    4: Field("s", BYTES),
    5: Field("t", BYTES),
    6: Field("g", BYTES),
    7: Field("floats", FIXED32, many=True),
    8: Field("ints", VARINT, many=True),
    9: Field("strings", BYTES, many=True),
    10: Field("tensors", BYTES, many=True),
    11: Field("graphs", BYTES, many=True),
    13: Field("doc_string", BYTES),
    20: Field("type", VARINT),
    21: Field("ref_attr_name", BYTES),
}
"""AttributeProto."""

NODE: Message = {
    1: Field("input", BYTES, many=True),
    2: Field("output", BYTES, many=True),
    3: Field("name", BYTES),
    4: Field("op_type", BYTES),
    5: Field("attribute", BYTES, many=True),
    6: Field("doc_string", BYTES),
    7: Field("domain", BYTES),
    8: Field("overload", BYTES),
    9: Field("metadata_props", BYTES, many=True),
}
"""NodeProto."""

GRAPH: Message = {
    1: Field("node", BYTES, many=True),
    2: Field("name", BYTES),
    5: Field("initializer", BYTES, many=True),
    10: Field("doc_string", BYTES),
    11: Field("input", BYTES, many=True),
    12: Field("output", BYTES, many=True),
    13: Field("value_info", BYTES, many=True),
    16: Field("metadata_props", BYTES, many=True),
}
"""GraphProto."""

FUNCTION: Message = {
    1: Field("name", BYTES),
    4: Field("input", BYTES, many=True),
    5: Field("output", BYTES, many=True),
    6: Field("attribute", BYTES, many=True),
    7: Field("node", BYTES, many=True),
    8: Field("doc_string", BYTES),
    9: Field("opset_import", BYTES, many=True),
    10: Field("domain", BYTES),
    11: Field("attribute_proto", BYTES, many=True),
    12: Field("value_info", BYTES, many=True),
    13: Field("overload", BYTES),
    14: Field("metadata_props", BYTES, many=True),
}
"""FunctionProto."""

MODEL: Message = {
    1: Field("ir_version", VARINT),
    2: Field("producer_name", BYTES),
    3: Field("producer_version", BYTES),
    4: Field("domain", BYTES),
    5: Field("model_version", VARINT),
    6: Field("doc_string", BYTES),
    7: Field("graph", BYTES),
    8: Field("opset_import", BYTES, many=True),
    14: Field("metadata_props", BYTES, many=True),
    25: Field("functions", BYTES, many=True),
}
"""ModelProto."""

EXTERNAL = 1
"""TensorProto.DataLocation: the data lies in another file."""

TENSOR_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8,
}  # fmt: skip
"""Bits of one element by TensorProto.DataType; strings (8) and complex numbers (14, 15) are refused."""

TYPED_DATA = {
    "float_data": (1,),
    "int32_data": (2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24),
    "int64_data": (7,),
    "double_data": (11,),
    "uint64_data": (12, 13),
}
"""Which element types may be given in each typed field instead of ``raw_data``."""

VALUE_TYPES = {1: "float32", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
"""Manifest type name of an input's or output's element type."""

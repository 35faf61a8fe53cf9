"""External data where a reader may not look: in a node, a body, a function, an attribute's default."""

import onnx
import pytest
from onnx import helper

from .attack import HostileBundle


def stranger() -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", dims=[4], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "lm.safetensors"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant() -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=stranger())


def body() -> onnx.GraphProto:
    return helper.make_graph([constant()], "body", [], [], [stranger()])


@pytest.mark.parametrize("where", ["node", "list", "body", "bodies", "function", "default"])
def test_refused(bundle: HostileBundle, where: str) -> None:
    with bundle.model() as model:
        if where == "node":
            model.graph.node.append(constant())
        elif where == "list":
            attribute = onnx.AttributeProto(name="x", type=onnx.AttributeProto.TENSORS, tensors=[stranger()])
            model.graph.node[0].attribute.append(attribute)
        elif where == "body":
            model.graph.node.append(
                helper.make_node("If", ["c"], ["o"], then_branch=body(), else_branch=body())
            )
        elif where == "bodies":
            attribute = onnx.AttributeProto(name="x", type=onnx.AttributeProto.GRAPHS, graphs=[body()])
            model.graph.node[0].attribute.append(attribute)
        else:
            function = helper.make_function(
                "speechssm", "F", [], ["c"], [constant()], [helper.make_opsetid("", 23)]
            )
            if where == "default":
                del function.node[:]
                function.attribute_proto.append(helper.make_attribute("value", stranger()))
            model.functions.append(function)
    bundle.is_refused("may not have it elsewhere")

"""A graph with its weights inside, for judging without a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from speechssm.export.graphs.builder import GraphBuilder


def inline(builder: GraphBuilder, parts: Mapping[str, Mapping[str, np.ndarray]]) -> onnx.ModelProto:
    """The finished model with every declared weight of ``parts`` as an initializer of its stored type."""
    model = builder.model()
    placed = {tensor.name: tensor for tensor in model.graph.initializer}
    for key, use in builder.weights.items():
        values = parts[use.part][use.name].astype(helper.tensor_dtype_to_np_dtype(use.dtype))
        placed[key].CopyFrom(numpy_helper.from_array(values, key))
    return model

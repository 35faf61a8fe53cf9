"""Put a builder's weights inside the model, for tests that need no bundle on disk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speechssm.export.graphs.builder import GraphBuilder


def inline_weights(
    builder: GraphBuilder, parts: Mapping[str, Mapping[str, NDArray[np.float32]]]
) -> onnx.ModelProto:
    """The finished model with every declared weight of ``parts`` as an inline initializer of its stored type.

    Raises:
        AssertionError: a weight is missing or has another shape than the graph declares.
    """
    model = builder.model()
    placed = {t.name: t for t in model.graph.initializer}
    for key, use in builder.weights.items():
        values = parts[use.part][use.name]
        assert values.shape == use.shape, f"{key} is {values.shape}, the graph declares {use.shape}"
        if use.dtype == TensorProto.BFLOAT16:
            tensor = helper.make_tensor(key, use.dtype, values.shape, values.ravel())
        else:
            tensor = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(use.dtype)), key)
        placed[key].CopyFrom(tensor)
    return model

"""Inline weights whose data is longer or shorter than their shape, given twice, or of a type nobody uses."""

import onnx
import pytest

from speechssm.bundle import open_bundle

from .attack import HostileBundle


def inline(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.raw_data)


@pytest.mark.parametrize(
    "bend", ["long", "short", "none", "dims", "giant", "twice", "typed", "type", "string", "negative"]
)
def test_refused(bundle: HostileBundle, bend: str) -> None:
    with bundle.model() as model:
        tensor = inline(model)
        if bend == "long":
            tensor.raw_data += b"x"
        elif bend == "short":
            tensor.raw_data = tensor.raw_data[:-1]
        elif bend == "none":
            tensor.ClearField("raw_data")
        elif bend in ("dims", "giant", "negative"):
            tensor.dims.append({"dims": 7, "giant": 1 << 62, "negative": -1}[bend])
        elif bend == "twice":
            tensor.float_data.append(1.0)
        elif bend == "typed":
            tensor.ClearField("raw_data")
            tensor.uint64_data.extend([1] * 1000)
        elif bend == "type":
            tensor.data_type = 99
        else:
            tensor.data_type = onnx.TensorProto.STRING
    bundle.is_refused("opened safely")


def test_sparse(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.graph.sparse_initializer.add().dims.append(1 << 40)
    bundle.is_refused("field 15")


@pytest.mark.parametrize("kind", ["int64_data", "float_data", "double_data", "int32_data", "uint64_data"])
def test_typed_data_is_counted(bundle: HostileBundle, kind: str) -> None:
    """Control for the typed fields: as many elements as the shape says are taken, one more is not."""
    types = {"int64_data": 7, "float_data": 1, "double_data": 11, "int32_data": 2, "uint64_data": 13}
    values = (
        [0, 1, 127, 128, 300] if kind not in ("float_data", "double_data") else [0.0, 1.5, -2.0, 3.0, 4.0]
    )
    for extra in (0, 1):
        with bundle.model() as model:
            tensor = model.graph.initializer.add(
                name="more", data_type=types[kind], dims=[len(values) - extra]
            )
            getattr(tensor, kind).extend(values)
        if extra:
            bundle.is_refused("of 4 elements comes with 5")
        else:
            open_bundle(bundle.folder)

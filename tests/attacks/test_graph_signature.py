"""A graph whose inputs or outputs are not the manifest's: other names, types, sizes, one more, one less."""

import pytest
from onnx import helper

from .attack import HostileBundle


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("bend", ["more", "less", "name", "dtype", "size", "letter", "rank", "twice", "open"])
def test_refused(bundle: HostileBundle, side: str, bend: str) -> None:
    with bundle.model() as model:
        values = getattr(model.graph, side)
        value = next(v for v in values if v.name.endswith("L00_lru"))
        dims = value.type.tensor_type.shape.dim
        if bend == "more":
            values.append(helper.make_tensor_value_info("more", 1, ["b"]))
        elif bend == "less":
            values.remove(value)
        elif bend == "name":
            value.name += "_"
        elif bend == "dtype":
            value.type.tensor_type.elem_type = 10
        elif bend == "size":
            dims[1].dim_value += 1
        elif bend == "letter":
            dims[0].dim_param = "x"
        elif bend == "rank":
            dims.add().dim_value = 1
        elif bend == "twice":
            values.append(value)
        else:
            dims[1].Clear()
    bundle.is_refused("opened safely")


def test_strange_types(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.graph.input[0].type.tensor_type.elem_type = 8
    bundle.is_refused("has element type 8")
    with bundle.model() as model:
        model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    bundle.is_refused("field 4 is not one that a bundle's graphs use")

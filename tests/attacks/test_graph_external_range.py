"""External data past the end of its file, in its header, across tensors, or of another length than the shape."""

import pytest

from .attack import HostileBundle, place, weight_of


@pytest.mark.parametrize(
    "offset", [0, 8, 1 << 40, (1 << 63) - 1, -8, "0x10", "1e3", " 8", "08", "+8", "٣", "9" * 30, ""]
)
def test_offset(bundle: HostileBundle, offset: object) -> None:
    with bundle.model() as model:
        place(weight_of(model), offset=offset)
    bundle.is_refused("weight ")


@pytest.mark.parametrize("length", [0, 1, 1 << 40, -1, ""])
def test_length(bundle: HostileBundle, length: object) -> None:
    with bundle.model() as model:
        place(weight_of(model), length=length)
    bundle.is_refused("weight ")


def test_across_tensors(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        tensor = weight_of(model)
        (offset,) = (int(e.value) for e in tensor.external_data if e.key == "offset")
        place(tensor, offset=offset + 4)
    bundle.is_refused("where no tensor lies")


@pytest.mark.parametrize("dims", [[1 << 40], [3], [-1, 4], [0], [1] * 9, [1 << 32, 1 << 32]])
def test_shape(bundle: HostileBundle, dims: list[int]) -> None:
    with bundle.model() as model:
        tensor = weight_of(model)
        del tensor.dims[:]
        tensor.dims.extend(dims)
    bundle.is_refused("is not a graph that can be opened safely")

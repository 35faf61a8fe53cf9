"""External data given twice, with keys engines interpret, or beside inline data: readers may differ."""

import onnx
import pytest

from .attack import HostileBundle, weight_of


@pytest.mark.parametrize(
    "key", ["location", "offset", "length", "checksum", "prepacked_0", "basepath", "raw_data", ""]
)
def test_key(bundle: HostileBundle, key: str) -> None:
    """CVE-2026-34445 set attributes of the reader by keys such as these."""
    with bundle.model() as model:
        entry = weight_of(model).external_data.add()
        entry.key, entry.value = key, "lm.safetensors"
    bundle.is_refused("weight ")


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_key_missing(bundle: HostileBundle, key: str) -> None:
    with bundle.model() as model:
        tensor = weight_of(model)
        kept = [e for e in tensor.external_data if e.key != key]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    bundle.is_refused("needs a location, an offset and a length")


def test_both(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        weight_of(model).raw_data = b"1234"
    bundle.is_refused("both here and elsewhere")


@pytest.mark.parametrize("location", [onnx.TensorProto.DEFAULT])
def test_without_saying_so(bundle: HostileBundle, location: int) -> None:
    with bundle.model() as model:
        weight_of(model).data_location = location  # type: ignore[assignment]
    bundle.is_refused("does not say clearly where its data is")

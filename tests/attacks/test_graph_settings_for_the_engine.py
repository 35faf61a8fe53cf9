"""A model that brings ONNX Runtime its settings (ort_config), as some builds take them."""

from .attack import HostileBundle


def test_refused(bundle: HostileBundle) -> None:
    with bundle.model() as model:
        model.metadata_props.add(
            key="ort_config", value='{"session_options": {"inter_op_num_threads": 5000}}'
        )
    bundle.is_refused("ort_config")

"""One name for two tensors: readers differ in which one they take."""

from .attack import HostileBundle, safetensors_file


def test_refused(bundle: HostileBundle) -> None:
    entry = b'{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = b'{"w":' + entry % (0, 4) + b',"w":' + entry % (4, 8) + b"}"
    bundle.put("lm.safetensors", safetensors_file(header, bytes(8)))
    bundle.is_refused("a name appears twice")

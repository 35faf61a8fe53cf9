"""Keys this version does not know, at the top and inside: settings that would silently not apply."""

import pytest

from .attack import HostileBundle, Table


@pytest.mark.parametrize(
    "where", [(), ("lm",), ("lm", "shape"), ("windows",), ("graphs", "lm_step"), ("files", "lm.safetensors")]
)
def test_refused(bundle: HostileBundle, where: tuple[str, ...]) -> None:
    def change(table: Table) -> None:
        for key in where:
            table = table[key]
        table["custom_op_library"] = "/tmp/evil.so"

    bundle.edit(change)
    bundle.is_refused("custom_op_library")

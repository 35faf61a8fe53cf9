"""A part without its graph: it would fail minutes later, in the middle of a stream."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize(
    "graph",
    ["lm_step", "lm_chunk", "tokenizer", "acoustic_prompt", "acoustic", "codec_encode", "codec_decode"],
)
def test_refused(bundle: HostileBundle, graph: str) -> None:
    bundle.edit(lambda m: m["graphs"].pop(graph))
    bundle.is_refused(f"graphs are missing: {graph}")

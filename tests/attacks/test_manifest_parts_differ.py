"""Parts that do not fit together: other vocabularies, levels or lengths."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize(
    ("part", "key", "why"),
    [
        ("tokenizer", "vocab", "different vocabularies"),
        ("codec", "levels", "different levels or codes"),
        ("acoustic", "max_tokens", "different lengths"),
        ("acoustic", "prompt_tokens", "different lengths"),
    ],
)
def test_refused(bundle: HostileBundle, part: str, key: str, why: str) -> None:
    bundle.edit(lambda m: m[part]["shape"].update({key: m[part]["shape"][key] - 1}))
    bundle.is_refused(why)

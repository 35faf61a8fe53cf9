"""Names that move the cursor, colour the screen, turn the writing direction or fill it with lines."""

import pytest

from .attack import HostileBundle


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b[31mtrusted", "a\nb", "a\rb", "\u202egnp.wav", "\x00", "x" * 10_000]
)
@pytest.mark.parametrize("key", ["name", "about", "exporter"])
def test_refused(bundle: HostileBundle, key: str, text: str) -> None:
    bundle.edit(lambda m: m.update({key: text}))
    bundle.is_refused(f"manifest: {key}")


@pytest.mark.parametrize("text", ["\x1b[2Jtrusted", "a\nb", "x" * 100_000])
def test_quoted_in_the_refusal(bundle: HostileBundle, text: str) -> None:
    """The refusal quotes the key: it must stay on its one line."""
    bundle.edit(lambda m: m.update({text: 1}))
    bundle.is_refused("is not a valid manifest")

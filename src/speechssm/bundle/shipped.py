"""The bundle that ships inside the package."""

from __future__ import annotations

from pathlib import Path

from speechssm.errors import BundleError

VOICE = Path(__file__).parents[1] / "voices" / "demo"


def demo_voice() -> Path:
    """The folder of the demo voice. Raises BundleError in an installation without it."""
    if not (VOICE / "manifest.json").is_file():
        raise BundleError(
            f"the voice that ships with the package is missing from {VOICE.parent}: install the package again, or make "
            "a bundle with 'speechssm export --preset tiny --seed 0 -o tiny' (it speaks noise) and pass '--bundle tiny'"
        )
    return VOICE

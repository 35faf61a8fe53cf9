"""Error types. Every message says what happened, why, and what to do about it.

A leaf: it imports nothing, so every folder may raise these.
"""

LONGEST = 2000
"""Most characters of a message; what is quoted from a hostile file may be far longer."""


class SpeechSSMError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it as one sentence."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """``text`` on one printable line: names quoted from files must not move the cursor or fill the screen."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class AudioError(SpeechSSMError):
    """A recording cannot be read, used as a prompt, or written."""


class BundleError(SpeechSSMError):
    """A bundle is missing, incomplete, altered, or of another version."""


class SettingsError(SpeechSSMError, ValueError):
    """A caller's setting (seconds, temperature, seed, ...) is outside its range."""


class EngineError(SpeechSSMError):
    """An execution provider or engine is absent or failed."""


class SnapshotError(SpeechSSMError):
    """A session snapshot is damaged, too new, or belongs to another model."""


class CapacityError(SpeechSSMError):
    """A bounded resource (slots, queue, bytes) is full."""


class SessionFailed(SpeechSSMError):
    """One session's state is no longer usable; other sessions are not affected."""


class ExportError(SpeechSSMError):
    """A checkpoint cannot be exported, or an export missed its parity gate."""

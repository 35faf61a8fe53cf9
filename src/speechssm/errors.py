"""Error types. Every message says what happened, why, and what to do about it.

A leaf: it imports nothing, so every folder may raise these.
"""


class SpeechSSMError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it as one sentence."""


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

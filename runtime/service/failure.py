"""From an exception to the terminal event a reader gets: a code to act on, and a sentence."""

from __future__ import annotations

from speechssm.errors import (
    AudioError,
    BundleError,
    CapacityError,
    EngineError,
    SessionFailed,
    SettingsError,
    SnapshotError,
    SpeechSSMError,
    one_line,
)

from .outlet import End

CODES: dict[type[Exception], str] = {
    SessionFailed: "unhealthy",
    EngineError: "engine",
    AudioError: "audio",
    SettingsError: "settings",
    SnapshotError: "snapshot",
    CapacityError: "capacity",
    BundleError: "bundle",
    MemoryError: "memory",
}


def failure_of(error: Exception) -> End:
    """The end of a session that ``error`` happened to. What we did not raise on purpose is 'internal'."""
    for kind, code in CODES.items():
        if isinstance(error, kind):
            text = str(error) or "the machine is out of memory: lower the limits of the service"
            return End("failed", code, text)
    if isinstance(error, SpeechSSMError):
        return End("failed", "internal", str(error))
    return End(
        "failed", "internal", one_line(f"{type(error).__name__}: {error}: this is a bug, please report it")
    )


def raised_of(end: End) -> SpeechSSMError:
    """The exception an iterator raises for a stream that failed."""
    for kind, code in CODES.items():
        if code == end.code and issubclass(kind, SpeechSSMError):
            return kind(end.message)
    return SessionFailed(f"{end.code}: {end.message}")

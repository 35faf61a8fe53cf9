"""Checkpoint files: each session's start, and its last two moments, in one folder.

A file is an ordinary session snapshot named ``<session>.<samples>.safetensors``, ``samples`` being what its
reader had taken. So the file to go on from is found by name: the newest that is not past the sample asked
for. The start is kept for readers that lost more than two checkpoints: everything can be made again.
"""

from __future__ import annotations

import re
from pathlib import Path

from speechssm.errors import SettingsError, SnapshotError

from ..frozen import Frozen
from ..snapshot import read_snapshot, write_snapshot

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(rf"({KEY.pattern})\.([0-9]{{12,19}})\.safetensors")
NEWEST = 2
"""Checkpoints kept of a session beside its start."""


def check_key(key: str) -> str:
    """``key`` if it can name a session. Raises SettingsError."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise SettingsError(
            f"session id {key!r} is not usable: give 1 to 64 letters, digits, '-' or '_', the first no sign"
        )
    return key


class CheckpointFolder:
    """Checkpoints of the sessions of one bundle. ``write`` and ``forget`` of one session do not overlap."""

    def __init__(self, folder: Path, digest: str, session_bytes: int, sessions: int) -> None:
        """``sessions`` is how many sessions' files are kept. Raises SnapshotError if there can be no folder."""
        self.folder = folder
        self._digest = digest
        self._session_bytes = session_bytes
        self._sessions = sessions
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SnapshotError(f"cannot make the checkpoint folder {folder}: {error.strerror}") from error

    def write(self, key: str, frozen: Frozen) -> Path:
        """Write one checkpoint, then drop those no longer needed. Raises SnapshotError; older ones stay."""
        path = self.folder / f"{check_key(key)}.{int(frozen.meta['samples']):012d}.safetensors"
        write_snapshot(path, frozen, self._digest)
        for old in self._files(key)[1:-NEWEST]:
            old.unlink(missing_ok=True)
        return path

    def read(self, key: str, from_sample: int) -> Frozen:
        """The newest checkpoint of a session that is not past ``from_sample``. Raises SnapshotError."""
        files = self._files(check_key(key))
        if not files:
            raise SnapshotError(f"there is no checkpoint of session {key} in {self.folder}: start it anew")
        fitting = [path for path in files if _samples(path) <= from_sample]
        if not fitting:
            raise SnapshotError(
                f"the first checkpoint of session {key} is at sample {_samples(files[0])}, after {from_sample}: "
                "resume from there, or start it anew"
            )
        return read_snapshot(fitting[-1], self._digest, self._session_bytes)

    def forget(self, key: str) -> None:
        """Delete a session's checkpoints."""
        for path in self._files(check_key(key)):
            path.unlink(missing_ok=True)

    def keys(self) -> list[str]:
        """Sessions that can be resumed, the one written longest ago first."""
        newest: dict[str, float] = {}
        for path in self.folder.iterdir():
            if found := _FILE.fullmatch(path.name):
                try:
                    newest[found[1]] = max(newest.get(found[1], 0.0), path.stat().st_mtime)
                except FileNotFoundError:
                    continue
        return sorted(newest, key=newest.__getitem__)

    def prune(self, alive: set[str]) -> None:
        """Delete checkpoints of the oldest sessions past the limit, those ``alive`` excepted."""
        keys = self.keys()
        gone = [key for key in keys if key not in alive]
        for key in gone[: max(0, len(keys) - self._sessions)]:
            self.forget(key)

    def _files(self, key: str) -> list[Path]:
        found = [p for p in self.folder.glob(f"{key}.*.safetensors") if _FILE.fullmatch(p.name)]
        return sorted(found, key=_samples)


def _samples(path: Path) -> int:
    return int(path.name.split(".")[1])

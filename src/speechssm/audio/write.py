"""Writing speech as it is made: constant memory, and a file that is whole or not there.

Samples go to a temporary name beside the target. Only a finished file takes the target's name, in one
step, so nobody ever reads a half-written one and of two writers the last to finish wins, whole. What a
killed process leaves is the temporary name.
"""

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import AudioError
from speechssm.uninterrupted import run_uninterrupted

from .read import Sequential

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".w64": "W64"}
"""File name endings and libsndfile's names for them; all hold 16-bit PCM."""
MAX_WAV_BYTES = (1 << 32) - 4096
"""Most bytes of samples in a WAV file, whose lengths are 32-bit: 37 hours at 16 kHz. W64 and FLAC go on."""
MAX_RATE_HZ = 384_000
"""Highest sample rate that is written."""
_PIECE = 1 << 16
_NAMES = 1000
_FLAC_LENGTH_BYTE = 21
_FULL_SCALE = np.float32(1 << 15)


def to_pcm16(audio: NDArray[np.floating]) -> NDArray[np.int16]:
    """Float samples (n) as int16: times 2^15, rounded half to even, clipped.

    The inverse of how 16-bit files are read: samples that came from one come back exactly.

    Raises:
        AudioError: a sample is NaN or infinite.
    """
    finite = np.isfinite(audio)
    if not finite.all():
        place = int(np.argmin(finite))
        raise AudioError(
            f"sample {place} of a block to write is {audio[place]}; what came before is written."
        )
    scaled = np.minimum(np.rint(np.clip(audio, -1, 1) * _FULL_SCALE), _FULL_SCALE - 1)
    pcm: NDArray[np.int16] = scaled.astype(np.int16)
    return pcm


class AudioWriter:
    """A mono 16-bit file being written: WAV, FLAC or W64 by its name's ending.

    Use it as a context manager: leaving normally finishes the file; leaving by an exception discards it,
    or with ``keep_partial`` finishes the shorter one. :meth:`close` and :meth:`abort` do the same by hand.
    If nothing was written there is no file. Not for use by several threads at once.

    Args:
        path: the target; an existing file is replaced at the end, a link is followed.
        sample_rate_hz: rate written into the header.
        keep_partial: whether an exception in the ``with`` block leaves a valid shorter file.

    Raises:
        AudioError: the folder is missing or not writable, or the name or rate is not usable.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        *,
        keep_partial: bool = False,
    ) -> None:
        self._shown = os.fsdecode(path)
        self._keep_partial = keep_partial
        self._samples = 0
        self._good_bytes = 0  # size after the last piece that was written whole
        self._failed = False
        self._kept: bool | None = False  # None while open
        self._problem: AudioError | None = None
        self._closing = threading.Lock()
        if not 1 <= sample_rate_hz <= MAX_RATE_HZ:
            raise AudioError(
                f"a sample rate of {sample_rate_hz} Hz cannot be written; give 1 to {MAX_RATE_HZ}."
            )
        self._rate_hz = int(sample_rate_hz)
        try:
            self._target = Path(os.path.realpath(self._shown))
            plain = self._target.is_file() or not self._target.exists()
        except (OSError, ValueError) as error:
            raise self._refusal(error) from error
        if self._target.suffix.lower() not in FORMATS:
            raise AudioError(f"{self._shown} must end in {', '.join(FORMATS)}: the ending says the format.")
        self._format = FORMATS[self._target.suffix.lower()]
        if not plain:
            raise AudioError(f"{self._shown} exists and is not a file; give another name.")
        try:
            run_uninterrupted(self._open)
        except BaseException:
            self._forget()
            raise

    def __del__(self) -> None:
        """Discard what nobody finished: the interruption that lost the writer lost it between two calls."""
        try:  # noqa: SIM105 - contextlib may be gone when the interpreter ends
            self._forget()
        except Exception:
            pass

    @property
    def path(self) -> Path:
        """The target, absolute."""
        return self._target

    @property
    def samples(self) -> int:
        """Samples written so far."""
        return self._samples

    @property
    def seconds(self) -> float:
        """Seconds written so far."""
        return self._samples / self._rate_hz

    def write(self, audio: NDArray[np.floating]) -> None:
        """Append float samples (n), full scale 1.

        Raises:
            AudioError: a sample is not finite, the file cannot grow (disk full, quota, a WAV's 4 GiB), or
                the writer is closed. What was written before stays, and :meth:`close` makes it a file.
        """
        if self._kept is not None:
            raise AudioError(f"{self._shown} is closed; open a new writer.")
        if self._failed:
            raise AudioError(f"{self._shown} failed before and takes no more samples; close it.")
        if audio.ndim != 1 or audio.dtype.kind != "f":
            raise AudioError(f"blocks to write are float samples (n), not {audio.dtype}{list(audio.shape)}.")
        if self._format == "WAV" and (self._samples + len(audio)) * 2 > MAX_WAV_BYTES:
            raise AudioError(
                f"{self._shown} reached {self.seconds / 3600:.1f} h, where a WAV file ends (4 GiB). "
                "Name the output .flac or .w64 for longer ones."
            )
        for first in range(0, len(audio), _PIECE):
            self._append(to_pcm16(audio[first : first + _PIECE]))

    def close(self, keep: bool = True) -> Path | None:
        """Finish the file under its own name, or discard it; once only, later calls change nothing.

        Returns:
            The target if there is a file, None if it was discarded or nothing was ever written.

        Raises:
            AudioError: it cannot be finished or renamed. Nothing is left behind, unless the writer was made
                with ``keep_partial`` and all but the end could be saved.
        """
        if self._kept is None:
            # A Ctrl-C here waits for a finished file; calling close again after it is safe.
            run_uninterrupted(lambda: self._finish(keep))
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
        return self._target if self._kept else None

    def abort(self) -> None:
        """Discard what was written: neither the target nor the temporary file is left."""
        self.close(keep=False)

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = error is None or self._keep_partial
        try:
            self.close(keep)
        except (KeyboardInterrupt, SystemExit):
            self.close(keep)
            raise
        except AudioError as problem:
            if error is None:
                raise
            error.add_note(str(problem))

    def _open(self) -> None:
        """Make the temporary file and libsndfile's side of it, or neither."""
        handle, temporary = self._create()
        try:
            file = Sequential(handle, "w", self._rate_hz, 1, "PCM_16", format=self._format, closefd=False)
        except soundfile.SoundFileError as error:
            reason = _why_full(handle)
            os.close(handle)
            temporary.unlink()
            raise AudioError(f"{self._shown} cannot be written: {reason}. Choose another place.") from error
        self._handle, self._temporary, self._file = handle, temporary, file
        self._kept = None

    def _forget(self) -> None:
        """Discard the file here and now; a thread could not be waited for when the interpreter ends."""
        if self._kept is None:
            self._finish(False)

    def _create(self) -> tuple[int, Path]:
        """Make a new temporary file beside the target, its name ours alone."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for attempt in range(_NAMES):
            mark = f"{os.getpid()}-{attempt}" if attempt else f"{os.getpid()}"
            name = self._target.with_name(f"{self._target.name}.{mark}.partial")
            try:
                return os.open(name, flags, 0o666), name
            except FileExistsError:
                continue
            except OSError as error:
                raise self._refusal(error) from error
        raise AudioError(f"{self._target.parent} holds {_NAMES} unfinished files of this name; remove them.")

    def _append(self, piece: NDArray[np.int16]) -> None:
        try:
            self._file.write(piece)
        except (soundfile.SoundFileError, AssertionError, OSError) as error:
            # libsndfile says no more than "system error", and soundfile asserts on a short write.
            self._failed = True
            reason = _why_full(self._handle)
            self._drop_partial()
            raise AudioError(
                f"{self._shown} cannot grow after {self.seconds:.1f} s: {reason}. Free some space, or write "
                "elsewhere."
            ) from error
        self._samples += len(piece)
        self._good_bytes = os.fstat(self._handle).st_size

    def _drop_partial(self) -> None:
        """After a failed write, cut what is not whole: a FLAC frame, or the half of a 16-bit sample."""
        with contextlib.suppress(OSError):
            size = os.fstat(self._handle).st_size
            os.ftruncate(self._handle, self._good_bytes if self._format == "FLAC" else size - size % 2)

    def _finish(self, keep: bool) -> None:
        """Write the header's final lengths and rename, or remove; sets ``_kept`` and ``_problem``."""
        with self._closing:
            if self._kept is not None:
                return
            keep = keep and (self._samples > 0 or self._failed)
            try:
                try:
                    whole = self._end_stream(keep)
                finally:
                    os.close(self._handle)
                # Without a caller's wish for a shorter file, one that lost its end is no result.
                keep = keep and self._samples > 0 and (whole or self._failed or self._keep_partial)
                if keep:
                    os.replace(self._temporary, self._target)
                    _sync_folder(self._target.parent)
            except OSError as error:
                keep, self._problem = False, self._refusal(error)
            if not keep:
                with contextlib.suppress(OSError):
                    self._temporary.unlink()
            self._kept = keep

    def _end_stream(self, keep: bool) -> bool:
        """Close libsndfile's side; with ``keep``, leave a valid file on the disk. False: its end is lost."""
        whole = not self._failed
        try:
            self._file.close()
        except soundfile.SoundFileError:
            whole = False
        if not keep:
            return whole
        if self._format == "FLAC" and whole:
            # The encoder holds back a last frame, and does not report that the disk had no room for it.
            whole = _flac_length(self._handle) >= self._samples
        if not whole:
            self._samples = self._save_partial()
        if not whole and not self._failed:
            self._problem = AudioError(
                f"{self._shown} could not be finished: {_why_full(self._handle)}. Free some space, or write "
                "elsewhere."
            )
        os.fsync(self._handle)
        return whole

    def _save_partial(self) -> int:
        """Make what a failed write left a valid file; return its samples."""
        try:
            if self._format == "FLAC":
                self._drop_partial()
                return _set_flac_length(self._handle)
            os.lseek(self._handle, 0, os.SEEK_SET)
            with Sequential(self._handle, closefd=False) as file:
                return int(file.frames)
        except soundfile.SoundFileError:  # not even the header found room
            return 0

    def _refusal(self, error: OSError | ValueError) -> AudioError:
        folder = Path(self._shown).parent
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return AudioError(f"{self._shown} cannot be written: there is no folder {folder}. Make it first.")
        if isinstance(error, PermissionError):
            return AudioError(f"{self._shown} cannot be written: {why}. Choose a folder you may write to.")
        return AudioError(f"{self._shown} cannot be written: {why}. Choose another place.")


def _why_full(handle: int) -> str:
    """Ask the system itself why a file does not grow, and leave its size as it was."""
    size = os.lseek(handle, 0, os.SEEK_END)
    reason = "the disk refused it"
    try:
        for _ in range(2):  # the first may still fit in part
            os.write(handle, bytes(_PIECE))
    except OSError as error:
        reason = error.strerror or reason
    with contextlib.suppress(OSError):
        os.ftruncate(handle, size)
    return reason


def _flac_length(handle: int) -> int:
    """Samples that a FLAC header promises: the low 36 bits of byte 21 on (RFC 9639, section 8.2)."""
    os.lseek(handle, _FLAC_LENGTH_BYTE, os.SEEK_SET)
    return int.from_bytes(os.read(handle, 5), "big") & (1 << 36) - 1


def _set_flac_length(handle: int) -> int:
    """Count the samples of a FLAC file whose encoder could not finish, and write the count into its header.

    The file ends with a whole FLAC frame but its header still says "length unknown", which some players
    refuse.
    """
    os.lseek(handle, 0, os.SEEK_SET)
    count = 0
    with Sequential(handle, closefd=False) as file:
        while block := len(file.read(_PIECE, dtype="int16")):
            count += block
    os.lseek(handle, _FLAC_LENGTH_BYTE, os.SEEK_SET)
    high = os.read(handle, 1)[0] & 0xF0
    os.lseek(handle, _FLAC_LENGTH_BYTE, os.SEEK_SET)
    os.write(handle, (high << 32 | count).to_bytes(5, "big"))
    return count


def _sync_folder(folder: Path) -> None:
    """Make the rename last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

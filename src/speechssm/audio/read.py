"""Reading recordings: any common format, rate and channel count to 16 kHz mono float32.

Files come from anyone, so nothing here trusts a header: the limits below are checked before anything is
allocated, samples are decoded in blocks of bounded size, and every refusal is one sentence. Only formats
people record in are handed to libsndfile at all; its many historical ones stay closed.
"""

import os
import re
import shlex
import stat
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import AudioError

MIN_SECONDS = 1.0
"""Shortest recording that can be a prompt."""
MAX_SECONDS = 3600.0
"""Longest recording that is read; an hour is 230 MB of float32 at 16 kHz."""
MAX_CHANNELS = 32
"""Most channels that are mixed down."""
MIN_RATE_HZ = 4_000
"""Lowest sample rate: speech below it is not intelligible."""
MAX_RATE_HZ = 384_000
"""Highest sample rate of recording equipment."""
MAX_FILE_BYTES = 8 << 30
"""Largest file that is opened; an hour of 192 kHz stereo in 32 bits is 5.5 GB."""
MAX_PEAK = 16.0
"""Largest sample magnitude; full scale is 1, and integers passed as floats are far above this."""
SILENCE_PEAK = 2.0**-16
"""Half of a 16-bit step: a recording that never reaches it is digital silence."""
BLOCK_FRAMES = 1 << 16
"""Frames decoded at a time: at most 8 MiB with the most channels."""
GROWTH_SAMPLES = 1 << 22
"""Samples by which the result grows (16 MiB): a header's word is not taken for its length."""

# The first bytes of the containers that are opened, and libsndfile's names for them.
_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b"caff", b".snd", b"ID3")
_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"})
_FORMAT_WORDS = "WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU, CAF, W64 or RF64"
# libsndfile shortens a data chunk that runs past the end of its file, and says so only in its log.
_SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.M)
# Recorders that cannot know the length in advance (pipes) write about 2 or 4 GiB instead.
_ENDLESS_BYTES = 0x7FFF_0000
# An MP3's tag counts whole MPEG frames; decoders drop up to two of them at the ends.
_MP3_SLACK_FRAMES = 2 * 1152
_MP3_TAG_BYTES = 1 << 16

Source = str | os.PathLike[str] | NDArray[np.generic]
"""A path, or samples (n) or (n, channels) as float, or as int16 or int32 of full scale."""


class Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is only read or written forwards.

    soundfile seeks to where it already is after every block of a seekable file; in MP3 that changes the
    samples that follow.
    """

    def seekable(self) -> bool:
        """Whether soundfile should keep the place itself; libsndfile keeps it too."""
        return False


def read_audio(
    source: Source,
    rate_hz: int | None = None,
    *,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
) -> NDArray[np.float32]:
    """Read a recording as 16 kHz mono.

    Args:
        source: a file of any common format, or an array of samples, (n) or (n, channels).
        rate_hz: sample rate of an array; a file says its own.
        min_seconds: shortest recording to accept.
        max_seconds: longest recording to accept.

    Returns:
        float32 (n): the mean of the channels, resampled (soxr HQ) unless it is at 16 kHz already, when
        samples are exactly the file's. It never sits in memory twice.

    Raises:
        AudioError: there is no such recording, it is not audio, is damaged or cut short, or is outside the
            limits. Ogg, and MP3 without a length tag, cannot tell that they were cut: they are shorter.
    """
    if isinstance(source, np.ndarray):
        if rate_hz is None:
            raise AudioError(
                "samples were given without their rate: pass rate_hz, for example rate_hz=16000."
            )
        return _read_array(source, rate_hz, min_seconds, max_seconds)
    if not isinstance(source, (str, os.PathLike)):
        raise AudioError(f"a recording is a path or a numpy array, not {type(source).__name__}.")
    if rate_hz is not None:
        raise AudioError("rate_hz describes an array of samples; a file says its own rate, so leave it out.")
    return _read_file(os.fspath(source), min_seconds, max_seconds)


# ---- sources: each gives blocks of float32 (frames, channels) -------------------------------------------


def _read_array(
    samples: NDArray[np.generic], rate_hz: int, min_seconds: float, max_seconds: float
) -> NDArray[np.float32]:
    name = "the array"
    if samples.dtype.kind == "f":
        scale = 1.0
    elif samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        scale = 2.0 ** (1 - 8 * samples.dtype.itemsize)
    else:
        raise AudioError(
            f"{name} holds {samples.dtype}; give samples as floats within ±1, or int16 or int32."
        )
    if samples.ndim not in (1, 2):
        raise AudioError(f"{name} has {samples.ndim} dimensions; give samples as (n) or (n, channels).")
    table = samples.reshape(len(samples), -1) if samples.size else samples.reshape(0, 1)
    if table.shape[1] > MAX_CHANNELS >= table.shape[0]:
        raise AudioError(f"{name} is {list(samples.shape)}: channels come last, so pass its transpose.")
    _check_form(name, len(table), table.shape[1], rate_hz, max_seconds)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for first in range(0, len(table), BLOCK_FRAMES):
            block = table[first : first + BLOCK_FRAMES]
            with np.errstate(over="ignore"):  # a float64 too large for float32 is caught as infinite
                yield block.astype(np.float32) * np.float32(scale)

    return _to_speech(name, blocks(), rate_hz, min_seconds, max_seconds)


def _read_file(path: str, min_seconds: float, max_seconds: float) -> NDArray[np.float32]:
    handle = _open(path)
    try:
        head = _check_file(path, handle)
        try:
            file = Sequential(handle, closefd=False)
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise AudioError(f"{path} is damaged or not audio: {_reason(error)} {_convert(path)}") from error
        with file:
            if file.format not in _FORMATS:
                raise AudioError(f"{path} is {file.format}, not {_FORMAT_WORDS}. {_convert(path)}")
            frames = int(file.frames)
            endless = frames >= 1 << 62  # FLAC from a pipe does not know its length
            _check_form(path, 0 if endless else frames, file.channels, file.samplerate, max_seconds)
            if frames <= 0:
                raise AudioError(f"{path} holds no samples; the recording was empty or never finished.")
            _check_whole(path, file)
            trusted = not endless and (file.format != "MP3" or b"Xing" in head or b"Info" in head)
            blocks = _decode(
                path, file, frames - _MP3_SLACK_FRAMES * (file.format == "MP3") if trusted else 0
            )
            return _to_speech(path, blocks, file.samplerate, min_seconds, max_seconds)
    finally:
        os.close(handle)


def _open(path: str) -> int:
    """Open for reading without waiting: a pipe or device would never end, or never begin."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise AudioError(f"there is no file {path}; check the path.") from None
    except (OSError, ValueError) as error:
        raise AudioError(
            f"{path} cannot be opened: {_reason(error)} Check its permissions and path."
        ) from error


def _check_file(path: str, handle: int) -> bytes:
    """Refuse what is not a plain audio file; return its first bytes."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise AudioError(f"{path} is {what}, not a file; give the path of a recording.")
    if status.st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes); record or copy it again.")
    if status.st_size > MAX_FILE_BYTES:
        raise AudioError(
            f"{path} is {status.st_size} bytes; at most {MAX_FILE_BYTES} are read. {_convert(path)}"
        )
    try:
        head = os.read(handle, _MP3_TAG_BYTES)
        os.lseek(handle, 0, os.SEEK_SET)
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {_reason(error)} Copy it again.") from error
    mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if not mpeg and not head.startswith(_MAGICS):
        raise AudioError(f"{path} is not audio that is read here ({_FORMAT_WORDS}). {_convert(path)}")
    return head


def _check_whole(path: str, file: soundfile.SoundFile) -> None:
    """Refuse a file that is shorter than its header's data chunk, unless the header is a pipe's."""
    for declared, found in _SHORTENED.findall(file.extra_info):
        if int(found) + 1 < int(declared) < _ENDLESS_BYTES:
            raise AudioError(
                f"{path} is truncated: its header promises {declared} bytes of audio but {found} are there. "
                "Copy or record it again."
            )


def _decode(path: str, file: soundfile.SoundFile, promised: int) -> Iterator[NDArray[np.float32]]:
    """Decode block by block; refuse a file that ends before ``promised`` frames or cannot be decoded."""
    done = 0
    while True:
        try:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioError(
                f"{path} is damaged after {done / file.samplerate:.1f} s: {_reason(error)} Copy it again."
            ) from error
        if not len(block):
            break
        done += len(block)
        yield block
    if done < promised:
        raise AudioError(
            f"{path} is truncated: its header promises {promised / file.samplerate:.1f} s "
            f"but {done / file.samplerate:.1f} s can be decoded. Copy it again."
        )


# ---- from blocks to speech ------------------------------------------------------------------------------


def _check_form(name: str, frames: int, channels: int, rate_hz: int, max_seconds: float) -> None:
    if channels > MAX_CHANNELS:
        raise AudioError(
            f"{name} has {channels} channels; at most {MAX_CHANNELS} are mixed. Mix it down first."
        )
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, (int, np.integer)):
        raise AudioError(f"the rate of {name} is {rate_hz!r}; give it as an integer in Hz.")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioError(
            f"{name} has a sample rate of {rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are read. "
            "Convert it, or correct its header."
        )
    _check_length(name, frames / rate_hz, max_seconds)


def _check_length(name: str, seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise AudioError(f"{name} lasts {seconds:.0f} s; at most {max_seconds:g} s are read. Cut it first.")


def _to_speech(
    name: str,
    blocks: Iterator[NDArray[np.float32]],
    rate_hz: int,
    min_seconds: float,
    max_seconds: float,
) -> NDArray[np.float32]:
    """Check, mix and resample blocks (frames, channels) as they come; return float32 (n) at 16 kHz."""
    resampler = None
    if rate_hz != SAMPLE_RATE_HZ:
        resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    speech, length = np.empty(GROWTH_SAMPLES, np.float32), 0
    frames, loudest, ended = 0, 0.0, False
    while not ended:
        block = next(blocks, None)
        ended = block is None
        mono = np.empty(0, np.float32) if block is None else _mix(name, block, frames, rate_hz)
        frames += len(mono)
        _check_length(name, frames / rate_hz, max_seconds)
        loudest = max(loudest, float(np.abs(mono).max(initial=0.0)))
        if resampler is not None:
            mono = resampler.resample_chunk(mono, last=ended)
        if length + len(mono) > len(speech):
            # The system moves pages, not samples: memory holds one recording, never two.
            speech.resize(length + len(mono) + GROWTH_SAMPLES, refcheck=False)
        speech[length : length + len(mono)] = mono
        length += len(mono)
    if frames == 0:
        raise AudioError(f"{name} holds no samples; the recording was empty or never finished.")
    if frames < min_seconds * rate_hz:
        raise AudioError(f"{name} lasts {frames / rate_hz:.2f} s; give at least {min_seconds:g} s of speech.")
    if loudest < SILENCE_PEAK:
        raise AudioError(f"{name} is silent: no sample is above zero. Check the microphone and the file.")
    speech.resize(length, refcheck=False)
    return speech


def _mix(name: str, block: NDArray[np.float32], frames: int, rate_hz: int) -> NDArray[np.float32]:
    """Mean of the channels of one block that starts at ``frames``, after checking every sample."""
    size = np.abs(block)
    if not size.max(initial=0.0) <= MAX_PEAK:  # also when it is NaN
        row = int(np.argmax(~(size <= MAX_PEAK).all(axis=1)))
        values = block[row]
        where = f"at {(frames + row) / rate_hz:.3f} s"
        if not np.isfinite(values).all():
            raise AudioError(f"{name} holds NaN or infinity {where}; export it again from its source.")
        raise AudioError(
            f"{name} holds {values[np.argmax(np.abs(values))]:g} {where}, but full scale is 1; "
            "divide it by its full scale (32768 for 16-bit values)."
        )
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    mono = block[:, 0].copy()
    for channel in range(1, block.shape[1]):  # ten times faster than mean() along so short an axis
        mono += block[:, channel]
    mono /= block.shape[1]
    return mono


def _reason(error: Exception) -> str:
    """An error's own words, as one sentence."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    if "possibly a pipe" in text:  # libsndfile's words for an MP3 without a single whole frame
        text = "nothing in it can be decoded"
    return str(text).strip().rstrip(".") + "."


def _convert(path: str) -> str:
    return f"Convert it first, for example: ffmpeg -i {shlex.quote(path)} -ac 1 -ar 16000 prompt.wav"

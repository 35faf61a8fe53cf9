"""Reading recordings: every format, rate and channel count, and one clear sentence for what is not one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechssm.audio import read, read_audio
from speechssm.errors import AudioError

LOSSLESS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "ULAW"), ("WAV", "MS_ADPCM")]


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Samples that a 16-bit file holds exactly."""
    steps = np.random.default_rng(seed).normal(scale=3000, size=shape).round()
    return (steps / 32768).astype(np.float32)


def save(
    path: Path, samples: NDArray[np.float32], rate_hz: int, form: str = "WAV", sub: str = "PCM_16"
) -> Path:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(str(path), "w", rate_hz, channels, sub, format=form) as file:
        for first in range(0, len(samples), 16384):
            file.write(samples[first : first + 16384])
    return path


def bend(path: Path, change: Callable[[bytearray], object]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


# ---- what is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "sub"), LOSSLESS)
def test_lossless_formats_come_back_to_the_bit(tmp_path: Path, form: str, sub: str) -> None:
    samples = noise((70_001,))
    got = read_audio(save(tmp_path / "prompt", samples, 16_000, form, sub))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, samples)


@pytest.mark.parametrize(("form", "sub"), LOSSY)
def test_lossy_formats_are_read(tmp_path: Path, form: str, sub: str) -> None:
    time = np.arange(160_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    got = read_audio(save(tmp_path / "prompt", tone, 16_000, form, sub))
    assert abs(len(got) - 160_000) <= 2048
    assert np.corrcoef(got[2_000:150_000], tone[2_000:150_000])[0, 1] > 0.99


def test_an_mp3_is_read_as_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """soundfile's seek between blocks changes MP3 samples; ours must not."""
    path = save(tmp_path / "prompt.mp3", noise((400_000,)), 16_000, "MP3", "MPEG_LAYER_III")
    got = read_audio(path)
    whole, _ = soundfile.read(str(path), dtype="float32")
    np.testing.assert_allclose(got, whole, rtol=0, atol=1e-6)
    for frames in (1_000_000, 1_001):
        monkeypatch.setattr(read, "BLOCK_FRAMES", frames)
        np.testing.assert_array_equal(read_audio(path), got)


@pytest.mark.parametrize(
    "rate_hz", [4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000, 12_347]
)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_channel_count(tmp_path: Path, rate_hz: int, channels: int) -> None:
    """Block by block equals all at once: mean of the channels, then soxr HQ."""
    frames = rate_hz + rate_hz // 3 + 7
    samples = noise((frames, channels), rate_hz)
    mono = samples.mean(axis=1, dtype=np.float32)
    expected = soxr.resample(mono, rate_hz, 16_000, quality="HQ")
    got = read_audio(save(tmp_path / "prompt.wav", samples, rate_hz))
    assert abs(len(got) - frames * 16_000 / rate_hz) <= 1
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(read_audio(samples, rate_hz), expected)


@given(st.integers(50, 2**12), st.integers(1, 4), st.integers(16_000, 40_000))
@settings(max_examples=30, deadline=None)
def test_blocks_do_not_show(block: int, channels: int, frames: int) -> None:
    samples = noise((frames, channels), block)
    before = read.BLOCK_FRAMES
    whole = read_audio(samples, 22_050, min_seconds=0.5)
    try:
        read.BLOCK_FRAMES = block
        np.testing.assert_array_equal(read_audio(samples, 22_050, min_seconds=0.5), whole)
    finally:
        read.BLOCK_FRAMES = before


def test_arrays_of_every_kind_are_the_same_recording() -> None:
    steps = np.random.default_rng(1).integers(-30_000, 30_000, 20_000).astype(np.int16)
    expected = (steps / 32768).astype(np.float32)
    for same in (
        steps,
        steps.astype(">i2"),
        steps.astype(np.int32) * 65536,
        expected,
        expected.astype(np.float64),
        expected[:, None],
        np.stack([expected, expected], axis=1),
        np.repeat(expected, 2)[::2],
    ):
        got = read_audio(same, 16_000)
        np.testing.assert_array_equal(got, expected)
        assert not np.shares_memory(got, same)


def test_a_path_may_have_any_name(tmp_path: Path) -> None:
    path = save(tmp_path / "o dd'ü.raw", noise((16_000,)), 16_000)
    assert len(read_audio(str(path))) == 16_000


def test_a_pipe_wrote_the_header(tmp_path: Path) -> None:
    """Programs that write WAV to a pipe cannot know its length: 4 GiB or 2 GiB stands there instead."""
    samples = noise((20_000,))
    for length in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x24\xf0\xff\x7f"):
        path = save(tmp_path / "prompt.wav", samples, 16_000)

        def lie(content: bytearray, length: bytes = length) -> None:
            content[4:8] = content[40:44] = length

        np.testing.assert_array_equal(read_audio(bend(path, lie)), samples)


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    samples = noise((70_000,))
    path = save(tmp_path / "prompt.flac", samples, 16_000, "FLAC")

    def forget(content: bytearray) -> None:
        content[21] &= 0xF0
        content[22:26] = bytes(4)

    np.testing.assert_array_equal(read_audio(bend(path, forget)), samples)


# ---- what is refused ----------------------------------------------------------------------------------


def refused(source: object, match: str, **more: object) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        read_audio(source, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.wav", "there is no file")
    refused(tmp_path / "no" / "no.wav", "there is no file")
    refused(tmp_path, "is a folder")
    refused("/dev/zero", "pipe or device")
    refused("a\0b.wav", "cannot be opened")
    refused("x" * 5000, "cannot be opened")
    refused(3, "path or a numpy array, not int")
    refused(None, "not NoneType")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    refused(tmp_path / "loop.wav", "cannot be opened")


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    refused(tmp_path / "pipe.wav", "pipe or device")


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"hello, I am text",
        b"<!DOCTYPE html><html>",
        b"%PDF-1.7",
        b"\x00\x00\x00\x20ftypM4A ",
        b"PK\3\4" * 50,
    ],
)
def test_what_is_not_audio(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompt.wav"
    path.write_bytes(content)
    refused(path, "not audio that is read here.*ffmpeg -i")


@pytest.mark.parametrize("magic", [*read._MAGICS, b"\xff\xfb\x90\x00"])
def test_a_magic_and_nothing_more(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "prompt.wav"
    for tail in (b"", bytes(3), bytes(2000), os.urandom(2000)):
        path.write_bytes(magic + tail)
        with pytest.raises(AudioError, match=r"damaged or not audio|holds no samples|not WAV"):
            read_audio(path)


def test_a_historical_format_stays_closed(tmp_path: Path) -> None:
    refused(save(tmp_path / "a", noise((20_000,)), 16_000, "SVX"), "is SVX, not WAV")
    refused(save(tmp_path / "b", noise((20_000,)), 16_000, "VOC"), "not audio that is read here")


def test_empty_and_too_short(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").write_bytes(b"")
    refused(tmp_path / "zero.wav", r"is empty \(0 bytes\)")
    for form in ("WAV", "AIFF", "CAF"):
        refused(save(tmp_path / "none", noise((0,)), 16_000, form), "no samples")
    refused(save(tmp_path / "short.wav", noise((15_999,)), 16_000), "give at least 1 s")
    assert len(read_audio(save(tmp_path / "short.wav", noise((16_000,)), 16_000))) == 16_000
    for rate_hz in (8_000, 11_025, 44_100):
        assert len(read_audio(noise((rate_hz,)), rate_hz)) == 16_000
        refused(noise((rate_hz - 1,)), "at least 1 s", rate_hz=rate_hz)
    refused(noise((0,)), "no samples", rate_hz=16_000)
    refused(noise((0, 2)), "no samples", rate_hz=16_000)


def test_too_long_is_known_before_it_is_read(tmp_path: Path) -> None:
    """An hour and a sample, sparse on the disk: the header is enough to refuse it."""
    path = save(tmp_path / "long.wav", noise((16_000,)), 16_000)
    size = 2 * (3600 * 16_000 + 1)

    def lie(content: bytearray) -> None:
        content[4:8] = (size + 36).to_bytes(4, "little")
        content[40:44] = size.to_bytes(4, "little")

    bend(path, lie)
    os.truncate(path, size + 44)
    refused(path, "lasts 3600 s; at most 3600 s are read")
    refused(noise((20_000,)), "at most 1 s", rate_hz=16_000, max_seconds=1)
    refused(np.broadcast_to(np.float32(0.1), (10**12,)), "at most 3600 s", rate_hz=16_000)


def test_too_long_without_a_length_stops_at_the_limit(tmp_path: Path) -> None:
    path = save(tmp_path / "prompt.flac", noise((200_000,)), 16_000, "FLAC")

    def forget(content: bytearray) -> None:
        content[21] &= 0xF0
        content[22:26] = bytes(4)

    refused(bend(path, forget), "lasts 8 s; at most 5 s", max_seconds=5)


def test_a_file_of_absurd_size_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "huge.wav"
    path.write_bytes(b"RIFF")
    os.truncate(path, read.MAX_FILE_BYTES + 1)
    refused(path, "bytes; at most")


@pytest.mark.parametrize(("form", "sub"), [*LOSSLESS, ("MP3", "MPEG_LAYER_III")])
def test_truncated_files_say_so(tmp_path: Path, form: str, sub: str) -> None:
    path = save(tmp_path / "prompt", noise((100_000,)), 16_000, form, sub)
    os.truncate(path, path.stat().st_size * 6 // 10)
    refused(path, "truncated|damaged")


@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "AIFF", "AU", "FLAC"])
def test_a_single_lost_sample_is_noticed(tmp_path: Path, form: str) -> None:
    path = save(tmp_path / "prompt", noise((20_001,)), 16_000, form)
    size = path.stat().st_size
    read_audio(path)
    os.truncate(path, size - (size % 8 if form == "W64" else 0) - 8)
    refused(path, "truncated|damaged")


def test_silence(tmp_path: Path) -> None:
    refused(np.zeros(20_000, np.float32), "silent", rate_hz=16_000)
    for form, sub in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")):
        refused(save(tmp_path / "prompt", np.zeros(80_000, np.float32), 48_000, form, sub), "silent")
    samples = noise((20_000,))
    refused(np.stack([samples, -samples], axis=1), "silent", rate_hz=16_000)
    one = np.zeros(20_000, np.float32)
    one[777] = 1 / 32768
    assert read_audio(one, 16_000).max() > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    samples = noise((100_000, 2))
    samples[80_000, 1] = bad
    refused(samples, r"NaN or infinity at 5\.000 s", rate_hz=16_000)
    refused(save(tmp_path / "a.wav", samples, 16_000, "WAV", "FLOAT"), r"NaN or infinity at 5\.000 s")
    refused(save(tmp_path / "b.wav", samples, 16_000, "WAV", "DOUBLE"), "NaN or infinity")


def test_integers_passed_as_floats() -> None:
    refused(noise((20_000,)) * 32768, "full scale is 1; divide", rate_hz=16_000)
    refused(noise((20_000,)).astype(np.float64) * 1e300, "full scale is 1|NaN or infinity", rate_hz=16_000)
    assert read_audio(noise((20_000,)) * 4, 16_000).max() > 1


def test_absurd_channels_and_rates(tmp_path: Path) -> None:
    refused(save(tmp_path / "a.wav", noise((16_000, 33)), 16_000), "33 channels; at most 32")
    assert len(read_audio(save(tmp_path / "a.wav", noise((16_000, 32)), 16_000))) == 16_000
    refused(noise((2, 20_000)), "pass its transpose", rate_hz=16_000)
    refused(noise((20_000, 40)), "40 channels", rate_hz=16_000)
    for rate_hz in (1, 3_999, 384_001, 2**31 - 1):
        refused(save(tmp_path / "b.wav", noise((20_000,)), rate_hz), "sample rate")
    for rate in (0, -16_000, 16_000.0, True, "16000", 3_999):
        refused(noise((20_000,)), "rate", rate_hz=rate)


def test_arrays_that_are_not_samples() -> None:
    refused(noise((20_000,)), "without their rate")
    for bad in (
        np.zeros(20_000, np.uint8),
        np.zeros(20_000, complex),
        np.zeros(20_000, bool),
        np.array(["a"]),
    ):
        refused(bad, "give samples as floats", rate_hz=16_000)
    refused(np.array([object()]), "give samples as floats", rate_hz=16_000)
    refused(np.float32(1) * np.ones(()), "0 dimensions|path or a numpy", rate_hz=16_000)
    refused(np.zeros((2, 3, 4)), "3 dimensions", rate_hz=16_000)
    refused("x.wav", "leave it out", rate_hz=16_000)


@pytest.mark.parametrize("channels", [0, 1024, 1025, 65_535])
@pytest.mark.parametrize("rate_hz", [0, 1, 16_000, 2**32 - 1])
def test_a_wav_header_that_lies(tmp_path: Path, channels: int, rate_hz: int) -> None:
    path = save(tmp_path / "prompt.wav", noise((50_000,)), 16_000)

    def lie(content: bytearray) -> None:
        content[22:24] = channels.to_bytes(2, "little")
        content[24:28] = rate_hz.to_bytes(4, "little")
        content[32:34] = (channels * 2 & 0xFFFF).to_bytes(2, "little")

    refused(bend(path, lie), "channel|rate|damaged")


# ---- memory -------------------------------------------------------------------------------------------

_MEASURE = """
import re, sys
from pathlib import Path
from speechssm.audio import read_audio
speech = read_audio(sys.argv[1])
if sys.argv[2] == "twice":
    speech = speech + 1
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(path: Path, how: str) -> int:
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), how], capture_output=True, text=True, check=True
    )
    return int(out.stdout) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (48_000, 2)])
def test_a_recording_never_sits_in_memory_twice(tmp_path: Path, rate_hz: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for seconds in (2, 600):
        paths.append(tmp_path / f"{seconds}.wav")
        with soundfile.SoundFile(str(paths[-1]), "w", rate_hz, channels, "PCM_16") as file:
            second = rng.integers(-9_000, 9_000, (rate_hz, channels), dtype=np.int16)
            for _ in range(seconds):
                file.write(second)
    recording = 600 * 16_000 * 4
    allowed = recording + 4 * read.GROWTH_SAMPLES + (8 << 20)
    base = peak_bytes(paths[0], "once")
    assert peak_bytes(paths[1], "once") - base < allowed
    assert peak_bytes(paths[1], "twice") - base > allowed, "the measurement would not notice a second copy"

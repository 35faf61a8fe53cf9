"""Writing speech: exact samples, whole files or none, and what was written survives what goes wrong."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speechssm.audio import AudioWriter, read_audio, to_pcm16, write
from speechssm.errors import AudioError

ENDINGS = ("wav", "flac", "w64")


def noise(count: int, seed: int = 0) -> NDArray[np.float32]:
    steps = np.random.default_rng(seed).normal(scale=3000, size=count).round()
    return (steps / 32768).astype(np.float32)


def samples_of(path: Path) -> NDArray[np.int16]:
    handle = os.open(path, os.O_RDONLY)  # soundfile does not know .w64 by its name
    try:
        with soundfile.SoundFile(handle, closefd=False) as file:
            assert (file.samplerate, file.channels, file.subtype) == (16_000, 1, "PCM_16")
            content: NDArray[np.int16] = file.read(dtype="int16")
            assert len(content) == file.frames
            return content
    finally:
        os.close(handle)


def said(code: str, *arguments: object) -> str:
    """What a fresh process prints; it must end well and complain of nothing."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (0, "")
    return out.stdout


# ---- int16 --------------------------------------------------------------------------------------------


def test_int16_clips_without_wrapping() -> None:
    audio = np.float32(
        [0, 1, -1, 1.5, -1.5, 1e30, -1e30, 32767 / 32768, 0.5 / 32768, 1.5 / 32768, -0.5 / 32768]
    )
    assert to_pcm16(audio).tolist() == [0, 32767, -32768, 32767, -32768, 32767, -32768, 32767, 0, 2, 0]


def test_every_int16_value_survives() -> None:
    steps = np.arange(-32768, 32768).astype(np.int16)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(to_pcm16(steps.astype(dtype) / 32768), steps)


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=50))
def test_int16_is_the_nearest_step(values: list[float]) -> None:
    audio = np.array(values, np.float32)
    expected = np.clip(np.round(audio.astype(np.float64) * 32768), -32768, 32767)
    np.testing.assert_array_equal(to_pcm16(audio), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_written(tmp_path: Path, bad: float) -> None:
    audio = noise(100)
    audio[7] = bad
    with pytest.raises(AudioError, match="sample 7"):
        to_pcm16(audio)
    with pytest.raises(AudioError, match="sample 7"), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(audio)
    assert list(tmp_path.iterdir()) == []


# ---- files --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 150_000), min_size=1, max_size=6), st.sampled_from(ENDINGS), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_blocks_make_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], ending: str, double: bool
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    audio = noise(sum(sizes) + 1)
    for name, cuts in (("one", [0]), ("many", np.cumsum(sizes).tolist())):
        with AudioWriter(folder / f"{name}.{ending}") as writer:
            for piece in np.split(audio.astype(np.float64) if double else audio, cuts):
                writer.write(piece)
            assert (writer.samples, writer.seconds) == (len(audio), len(audio) / 16_000)
    assert samples_of(folder / f"many.{ending}").tolist() == (audio * 32768).astype(np.int16).tolist()
    assert (folder / f"one.{ending}").read_bytes() == (folder / f"many.{ending}").read_bytes()
    assert len(list(folder.iterdir())) == 2


def test_a_prompt_goes_through_sample_for_sample(tmp_path: Path) -> None:
    audio = noise(40_000)
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(audio)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), audio)
    with AudioWriter(tmp_path / "b.wav") as writer:
        writer.write(read_audio(tmp_path / "a.wav"))
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_the_target_appears_whole_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "out.wav"
    target.write_bytes(b"what was here before")
    with AudioWriter(target) as writer:
        writer.write(noise(50_000))
        assert target.read_bytes() == b"what was here before"
        (partial,) = [path for path in tmp_path.iterdir() if path != target]
        assert partial.name == f"out.wav.{os.getpid()}.partial"
    assert len(samples_of(target)) == 50_000
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "real" / "out.wav")
    with AudioWriter(tmp_path / "link.wav") as writer:
        writer.write(noise(20_000))
    assert (tmp_path / "link.wav").is_symlink()
    assert len(samples_of(tmp_path / "real" / "out.wav")) == 20_000


def test_changing_folder_meanwhile_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with AudioWriter("out.FLAC") as writer:
        writer.write(noise(20_000))
        monkeypatch.chdir(tmp_path / "there")
    assert len(samples_of(tmp_path / "here" / "out.FLAC")) == 20_000


def test_close_and_abort_by_hand(tmp_path: Path) -> None:
    writer = AudioWriter(tmp_path / "a.wav")
    writer.write(noise(20_000))
    assert writer.close() == tmp_path / "a.wav" == writer.path
    writer.abort()  # too late: the file is there to stay
    assert writer.close() == tmp_path / "a.wav"
    with pytest.raises(AudioError, match="is closed"):
        writer.write(noise(1))
    other = AudioWriter(tmp_path / "b.wav")
    other.write(noise(20_000))
    other.abort()
    assert other.close() is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("keep", [False, True])
def test_an_exception_discards_or_keeps(tmp_path: Path, keep: bool) -> None:
    for ending in ENDINGS:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(tmp_path / f"a.{ending}", keep)
        if keep:
            assert len(samples_of(tmp_path / f"a.{ending}")) == 30_001
    assert len(list(tmp_path.iterdir())) == 3 * keep


def _interrupted(path: Path, keep: bool) -> None:
    with AudioWriter(path, keep_partial=keep) as writer:
        writer.write(noise(30_001))
        raise KeyboardInterrupt


def test_nothing_written_is_no_file(tmp_path: Path) -> None:
    for ending in ENDINGS:
        with AudioWriter(tmp_path / f"a.{ending}") as writer:
            writer.write(noise(0))
        assert writer.close() is None
    assert list(tmp_path.iterdir()) == []


# ---- what is refused ----------------------------------------------------------------------------------


def refused(path: object, match: str, **more: object) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        AudioWriter(path, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    refused(tmp_path / "no" / "out.wav", "there is no folder .*Make it first")
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file" / "out.wav", "there is no folder|cannot be written")
    (tmp_path / "folder.wav").mkdir()
    refused(tmp_path / "folder.wav", "is not a file")
    refused(tmp_path / ("x" * 250 + ".wav"), "too long")
    refused("a\0b.wav", "cannot be written")
    for name in ("out", "out.mp3", "out.wav.bak", ".wav"):
        refused(tmp_path / name, "must end in .wav, .flac, .w64")
    for rate_hz in (0, -1, 384_001):
        refused(tmp_path / "out.wav", "sample rate", sample_rate_hz=rate_hz)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.wav"]


_AS_NOBODY = """
import os, sys
from speechssm.audio import AudioWriter
if os.geteuid() == 0:
    os.setuid(65534)
try:
    AudioWriter(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_folder_without_permission(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    message = said(_AS_NOBODY, locked / "out.wav")
    assert message.startswith("AudioError")
    assert "Permission denied" in message
    assert "Choose a folder you may write to" in message
    locked.chmod(0o755)
    assert list(locked.iterdir()) == []


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    writer = AudioWriter(folder / "out.wav")
    writer.write(noise(20_000))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    writer.write(noise(20_000))  # the system still takes it: there is nowhere to report to yet
    with pytest.raises(AudioError, match="there is no folder"):
        writer.close()
    assert writer.close() is None
    assert not folder.exists()


def test_blocks_that_are_not_samples(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="float samples"), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.zeros((10, 1), np.float32))
    with pytest.raises(AudioError, match="float samples"), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.zeros(10, np.int16))  # type: ignore[arg-type]


def test_a_wav_ends_at_four_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MAX_WAV_BYTES", 100_000)
    writer = AudioWriter(tmp_path / "a.wav")
    writer.write(noise(49_999))
    with pytest.raises(AudioError, match=r"4 GiB.*\.flac or \.w64"):
        writer.write(noise(2))
    writer.write(noise(1))
    writer.close()
    assert len(samples_of(tmp_path / "a.wav")) == 50_000
    with AudioWriter(tmp_path / "b.w64") as other:
        other.write(noise(60_000))


# ---- a full disk --------------------------------------------------------------------------------------

_LIMITED = """
import resource, sys
import numpy as np
from speechssm.audio import AudioWriter
path, limit, keep, block = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "keep", int(sys.argv[4])
audio = np.load(sys.argv[5])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with AudioWriter(path, keep_partial=keep) as writer:
        for first in range(0, len(audio), block):
            writer.write(audio[first : first + block])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("keep", ["keep", "drop"])
@pytest.mark.parametrize(
    ("limit", "block"), [(0, 4_000), (40, 4_000), (70_001, 1_000), (70_002, 7_777), (100_003, 50_000)]
)
def test_a_full_disk(tmp_path: Path, ending: str, keep: str, limit: int, block: int) -> None:
    """The system refuses more than ``limit`` bytes, in the middle of a header, a sample or a frame."""
    audio = noise(100_000)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"a.{ending}"
    np.save(tmp_path / "audio.npy", audio)
    message = said(_LIMITED, target, limit, keep, block, tmp_path / "audio.npy")
    assert message.startswith("AudioError")
    assert message.count("\n") == 1
    assert "File too large" in message
    if keep == "drop" or limit < 50:
        assert list(target.parent.iterdir()) == []
        return
    assert list(target.parent.iterdir()) == [target]
    written = samples_of(target)
    assert len(written) > (25_000 if ending == "flac" else 34_900)
    np.testing.assert_array_equal(written, (audio[: len(written)] * 32768).astype(np.int16))
    np.testing.assert_array_equal(read_audio(target), audio[: len(written)])


@pytest.mark.parametrize("keep", ["keep", "drop"])
def test_a_disk_that_is_full_at_the_very_end(tmp_path: Path, keep: str) -> None:
    """FLAC holds its last frame back until it is closed, and does not say that it was lost."""
    audio = noise(50_000)
    with AudioWriter(tmp_path / "whole.flac") as writer:
        writer.write(audio)
    size = (tmp_path / "whole.flac").stat().st_size
    np.save(tmp_path / "audio.npy", audio)
    target = tmp_path / "out.flac"
    message = said(_LIMITED, target, size - 1, keep, 1_000, tmp_path / "audio.npy")
    assert "could not be finished: File too large" in message
    assert len(list(tmp_path.iterdir())) == (3 if keep == "keep" else 2)
    if keep == "keep":
        np.testing.assert_array_equal(read_audio(target), audio[: 12 * 4096])


def test_the_disk_fails_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = AudioWriter(tmp_path / "a.wav")
    writer.write(noise(20_000))
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(AudioError, match="No space left on device"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_after_a_failure_only_close_is_left(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = AudioWriter(tmp_path / "a.wav")
    writer.write(noise(20_000))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (41_000, before[1]))
        with pytest.raises(AudioError, match=r"cannot grow after 1\.2 s"):
            writer.write(noise(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(AudioError, match="failed before"):
        writer.write(noise(1))
    assert writer.close() == tmp_path / "a.wav"
    assert len(samples_of(tmp_path / "a.wav")) == writer.samples == (41_000 - 44) // 2


# ---- interruptions and company ------------------------------------------------------------------------

# A process started in the background of a script inherits an ignored SIGINT; the child undoes that.
_ENDLESS = """
import signal, sys
import numpy as np
from speechssm.audio import AudioWriter
signal.signal(signal.SIGINT, signal.default_int_handler)
audio = np.full(1600, 0.25, np.float32)
try:
    with AudioWriter(sys.argv[1], keep_partial=True) as writer:
        print("go", flush=True)
        while True:
            writer.write(audio)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_endless(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    time.sleep(0.05)
    return process


@pytest.mark.parametrize("ending", ENDINGS)
def test_ctrl_c_leaves_a_shorter_file(tmp_path: Path, ending: str) -> None:
    process = start_endless(tmp_path / f"a.{ending}")
    process.send_signal(signal.SIGINT)
    _, problem = process.communicate(timeout=30)
    assert (process.returncode, problem) == (130, "")
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]
    written = samples_of(tmp_path / f"a.{ending}")
    assert len(written) >= 1600
    assert np.all(written == 8192)


def test_many_ctrl_c_leave_a_valid_file_or_none(tmp_path: Path) -> None:
    """Impatience during the closing itself: whatever is under the target's name is whole."""
    for attempt in range(5):
        target = tmp_path / f"{attempt}.flac"
        process = start_endless(target)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        process.communicate()
        assert process.returncode in (130, -signal.SIGINT, 1)
        if target.exists():
            assert np.all(samples_of(target) == 8192)


def test_a_killed_process_leaves_the_temporary_name_only(tmp_path: Path) -> None:
    process = start_endless(tmp_path / "a.wav")
    process.kill()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [f"a.wav.{process.pid}.partial"]


def test_an_interrupt_while_closing_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Ctrl-C in the middle of a slow fsync: the file is finished all the same, and the Ctrl-C is not lost."""
    real = os.fsync

    def slow(handle: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        real(handle)

    monkeypatch.setattr(os, "fsync", slow)
    # A job in the background inherits SIGINT as ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(noise(20_000))
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert len(samples_of(tmp_path / "a.wav")) == 20_000


_ONE_VALUE = """
import sys
import numpy as np
from speechssm.audio import AudioWriter
with AudioWriter(sys.argv[1]) as writer:
    for _ in range(int(sys.argv[3])):
        writer.write(np.full(1_600, float(sys.argv[2]), np.float32))
"""


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_two_processes_and_two_writers_on_one_name(tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"a.{ending}"
    processes = [
        subprocess.Popen([sys.executable, "-c", _ONE_VALUE, str(target), value, count])
        for value, count in (("0.25", "200"), ("0.5", "210"), ("0.125", "220"))
    ]
    first, second = AudioWriter(target), AudioWriter(target)
    assert [process.wait() for process in processes] == [0, 0, 0]
    written = samples_of(target)
    assert (len(written), written[0]) in [(320_000, 8192), (336_000, 16384), (352_000, 4096)]
    assert np.all(written == written[0])
    first.write(np.full(100, 0.25, np.float32))
    second.write(np.full(200, 0.5, np.float32))
    second.close()
    first.close()
    assert samples_of(target).tolist() == [8192] * 100
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_leave_nothing_open(tmp_path: Path) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts open files through /proc")
    before = count()
    for attempt in range(150):
        writer = AudioWriter(tmp_path / f"a.{ENDINGS[attempt % 3]}")
        writer.write(noise(100))
        writer.close(keep=attempt % 2 == 0)
    with pytest.raises(AudioError):
        AudioWriter(tmp_path / "no" / "a.wav")
    assert count() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_is_constant_over_hours(tmp_path: Path) -> None:
    """Two hours, and the process is no larger than after two minutes; a planted leak of 1 % shows."""
    code = """
import re, sys
import numpy as np
from pathlib import Path
from speechssm.audio import AudioWriter
kept = []
audio = np.random.default_rng(0).normal(scale=0.1, size=160_000).astype(np.float32)
sizes = []
with AudioWriter(sys.argv[1]) as writer:
    for block in range(720):
        writer.write(audio)
        if sys.argv[2] == "leak":
            kept.append(audio[:4000].copy())
        if block in (12, 719):
            sizes.append(int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
print(sizes[1] - sizes[0])
"""
    grown = {}
    for how in ("plain", "leak"):
        grown[how] = int(said(code, tmp_path / "a.wav", how))
    assert grown["plain"] < 1024 < grown["leak"]
    assert (tmp_path / "a.wav").stat().st_size == 44 + 2 * 720 * 160_000

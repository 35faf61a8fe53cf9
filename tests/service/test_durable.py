"""Checkpoints: resumed anywhere, after anything, a stream goes on with the samples it would have had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import speechssm
from speechssm.axes import SAMPLE_RATE_HZ
from speechssm.errors import CapacityError, SessionFailed, SettingsError, SnapshotError
from speechssm.runtime.model import Model
from speechssm.runtime.service.checkpoints import CheckpointFolder
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.service import Service

COMMON = {"rate_hz": SAMPLE_RATE_HZ, "schedule": "fast", "temperature": 3.0, "ramp": True}
SECONDS = 33.3
SAMPLES = round(SECONDS * SAMPLE_RATE_HZ)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return speechssm.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    rng = np.random.default_rng()
    return (0.1 * rng.standard_normal(SAMPLE_RATE_HZ * 2)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(model: Model, voice: np.ndarray) -> np.ndarray:
    return model.generate(voice, seconds=SECONDS, seed=5, **COMMON).audio  # type: ignore[arg-type]


def test_closed_and_resumed_from_any_sample(
    model: Model, voice: np.ndarray, whole: np.ndarray, tmp_path: Path, rng: np.random.Generator
) -> None:
    limits = ServiceLimits(buffer_s=3.0, lookahead_s=3.0)
    with Service(model, limits, checkpoints=tmp_path, checkpoint_s=0.0) as service:
        ticket = service.submit(voice, seconds=SECONDS, seed=5, session_id="one", **COMMON)  # type: ignore[arg-type]
        heard = [ticket.take() for _ in range(4)]
        time.sleep(0.6)
        assert service.checkpoint() == 1
    with pytest.raises(SessionFailed, match="resume it by its session id"):
        list(ticket)
    had = sum(len(piece) for piece in heard)  # type: ignore[arg-type, misc]
    assert np.concatenate(heard).tobytes() == whole[:had].tobytes()  # type: ignore[arg-type]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files[0] == "one.000000000000.safetensors"
    assert files[-1] == f"one.{had:012d}.safetensors"
    assert len(files) <= 3
    with Service(model, limits, checkpoints=tmp_path) as service:
        assert service.resumable() == ["one"]
        for start in (had, 0, 1, had - 1, int(rng.integers(SAMPLES)), SAMPLES - 1, SAMPLES):
            again = service.resume("one", start)
            with pytest.raises(CapacityError, match="already here"):
                service.resume("one", start)
            audio = np.concatenate([np.empty(0, np.float32), *again])
            assert audio.tobytes() == whole[start:].tobytes(), start
        with pytest.raises(SettingsError, match="ends at"):
            service.resume("one", SAMPLES + 1)
        with pytest.raises(SettingsError, match="from_sample"):
            service.resume("one", -1)
        service.forget("one")
        with pytest.raises(SnapshotError, match="no checkpoint"):
            service.resume("one", 0)
    assert list(tmp_path.iterdir()) == []


CHILD = """
import sys
import numpy as np, speechssm
from speechssm.runtime.service.limits import ServiceLimits
from speechssm.runtime.service.service import Service
bundle, folder, out, prompt, resume = sys.argv[1:]
model = speechssm.load(bundle, threads=1)
options = dict(rate_hz=16000, schedule="fast", temperature=3.0, ramp=True)
voice = np.load(prompt)
with Service(model, ServiceLimits(rows=2), checkpoints=folder, checkpoint_s=0.0) as service, open(out, "ab") as file:
    beside = service.submit(voice, seconds=1000, seed=9, **options)
    had = file.tell() // 4
    if resume == "resume" and "one" in service.resumable():
        ticket = service.resume("one", had)
    else:
        assert had == 0, "audio came before the first checkpoint"
        ticket = service.submit(voice, seconds=33.3, seed=5, session_id="one", **options)
    print("ready", flush=True)
    for piece in ticket:
        file.write(piece.tobytes())
        file.flush()
    beside.cancel()
"""


def killed_many_times(
    kills: int,
    tiny_bundle: Path,
    voice: np.ndarray,
    whole: np.ndarray,
    folder: Path,
    rng: np.random.Generator,
) -> None:
    """Kill -9 at random moments, resume from what is on disk, and compare every sample."""
    np.save(folder / "prompt.npy", voice)
    out, script = folder / "audio.f32", folder / "child.py"
    script.write_text(CHILD)
    words = [sys.executable, script, tiny_bundle, folder / "checkpoints", out, folder / "prompt.npy"]
    killed = 0
    for turn in range(kills + 1):
        child = subprocess.Popen(
            [*map(str, words), "resume" if turn else "new"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        ready = child.stdout.readline()
        if turn < kills and ready:
            time.sleep(float(rng.uniform(0, 0.25)))
            os.kill(child.pid, signal.SIGKILL)
        _, errors = child.communicate(timeout=120)
        killed += child.returncode == -signal.SIGKILL
        assert child.returncode in (0, -signal.SIGKILL), errors.decode()
        if out.stat().st_size % 4:
            with out.open("r+b") as file:
                file.truncate(out.stat().st_size // 4 * 4)
    audio = np.fromfile(out, np.float32)
    assert audio.tobytes() == whole.tobytes()
    assert killed >= 1


def test_kill_9_loses_nothing(
    tiny_bundle: Path, voice: np.ndarray, whole: np.ndarray, tmp_path: Path, rng: np.random.Generator
) -> None:
    killed_many_times(2, tiny_bundle, voice, whole, tmp_path, rng)


@pytest.mark.slow
def test_kill_9_ten_times(
    tiny_bundle: Path, voice: np.ndarray, whole: np.ndarray, tmp_path: Path, rng: np.random.Generator
) -> None:
    killed_many_times(10, tiny_bundle, voice, whole, tmp_path, rng)


def test_a_full_disk_costs_checkpoints_and_no_sample(
    model: Model, voice: np.ndarray, whole: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise SnapshotError("cannot write the snapshot: No space left on device")

    with Service(model, checkpoints=tmp_path, checkpoint_s=0.0) as service:
        monkeypatch.setattr("speechssm.runtime.service.checkpoints.write_snapshot", full)
        ticket = service.submit(voice, seconds=SECONDS, seed=5, **COMMON)  # type: ignore[arg-type]
        assert np.concatenate(list(ticket)).tobytes() == whole.tobytes()
        metrics = service.metrics()
        assert metrics.checkpoint_failures_total >= 1
        assert "No space" in metrics.checkpoint_error
        again = service.submit(voice, seconds=3000, seed=5, **COMMON)  # type: ignore[arg-type]
        again.take()
        with pytest.raises(SnapshotError, match="No space"):
            service.checkpoint()
        again.cancel()
    assert list(tmp_path.iterdir()) == []


def test_only_so_many_sessions_stay_on_disk(model: Model, voice: np.ndarray, tmp_path: Path) -> None:
    limits = ServiceLimits(sessions=2, snapshots=2)
    with Service(model, limits, checkpoints=tmp_path) as service:
        for number in range(5):
            ticket = service.submit(voice, seconds=0.5, seed=1, session_id=f"s{number}", **COMMON)  # type: ignore[arg-type]
            list(ticket)
            time.sleep(0.02)
        until = time.monotonic() + 10
        while len(service.resumable()) > 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert service.resumable() == ["s3", "s4"]


def test_a_checkpoint_is_an_ordinary_snapshot(
    model: Model, voice: np.ndarray, whole: np.ndarray, tmp_path: Path
) -> None:
    with Service(model, checkpoints=tmp_path) as service:
        ticket = service.submit(voice, seconds=SECONDS, seed=5, **COMMON)  # type: ignore[arg-type]
        first = ticket.take()
        assert isinstance(first, np.ndarray)
        service.checkpoint()
    newest = max(tmp_path.iterdir())
    rest = np.concatenate(list(model.restore(newest).resume()))
    assert rest.tobytes() == whole[-len(rest) :].tobytes()
    assert len(rest) + len(first) == len(whole)


def test_a_folder_that_cannot_be_made_is_reported(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match="cannot make"):
        Service(model, checkpoints=tmp_path / "file" / "x")


def test_names_that_look_alike_are_apart(model: Model, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, model.digest, 1 << 20, 4)
    for name in ("a.000000000000", "ab.000000000000", "a.b.000000000000", "a.1", "a.0000000000001"):
        (tmp_path / f"{name}.safetensors").touch()
    assert sorted(folder.keys()) == ["a", "ab"]
    folder.forget("a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.1.safetensors", "a.b.000000000000.safetensors", "ab.000000000000.safetensors",
    ]  # fmt: skip

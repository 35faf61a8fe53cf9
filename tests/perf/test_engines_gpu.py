"""The one script left for a machine with a GPU: what it does without one, and that no part takes others down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssm.errors import EngineError
from speechssm.perf import engines_gpu
from tests.engines.vendor_double import load_double


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise EngineError("CUDA finds no GPU")

    monkeypatch.setattr(engines_gpu, "open_device", none)
    monkeypatch.setattr("sys.argv", ["engines_gpu"])
    assert engines_gpu.main() == 1
    assert "CUDA finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("differs", "code"), [(None, 0), (0, 1), (7, 0)])
def test_every_part_is_reported(
    differs: int | None, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A part that cannot run is named with its reason; one that differs at once fails the run."""

    def fails() -> dict:
        raise EngineError("there is no plugin")

    ran = {"weight_bytes": 10**9, "step_us": 2000.0, "first_step_that_differs": differs}
    monkeypatch.setattr(engines_gpu, "open_device", load_double().HostDevice)
    monkeypatch.setattr(engines_gpu, "build", lambda preset: None)
    monkeypatch.setattr(engines_gpu, "copy_bandwidth", lambda device: 1e12)
    monkeypatch.setattr(
        engines_gpu, "parts", lambda out, quick, exports: [("a", fails), ("b", lambda: dict(ran))]
    )
    monkeypatch.setattr("sys.argv", ["engines_gpu", "--out", str(tmp_path)])
    assert engines_gpu.main() == code
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert report["a"] == {"not_run": "EngineError: there is no plugin"}
    assert report["b"]["of_weight_floor"] == pytest.approx(0.5)
    assert path.name.endswith("-engines-sm_89.json")


def test_its_parts_are_those_of_the_issue() -> None:
    names = [name for name, _ in engines_gpu.parts(Path("x"), False, Path("y"))]
    assert names[:2] == ["device", "kernels"]
    assert {"tensorrt-rtx tiny", "tensorrt tiny in place", "onnxruntime-cuda 2b, 1 rows"} <= set(names)
    assert "tensorrt-rtx demo, attention by the plugin" in names
    assert not any("2b" in name for name, _ in engines_gpu.parts(Path("x"), True, Path("y")))

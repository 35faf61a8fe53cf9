"""Engine keys and the cache: every field counts, every refusal is explained, nothing half built is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from speechssm.engines.cache import ENGINE, RECORD, build_once, find, list_engines
from speechssm.engines.key import REASONS, AxisRange, EngineKey
from speechssm.errors import EngineError

KEY = EngineKey(
    graph="lm_step",
    graph_digest="a" * 64,
    weight_digests=("b" * 64,),
    flavour="tensorrt-rtx",
    flavour_version="1.7.1",
    plugin_digest="c" * 64,
    architecture="sm_89",
    precision="float16",
    profiles={"b": AxisRange(low=1, likely=4, high=32)},
    options={"timing": "on"},
)
OTHER = {
    "graph": "lm_chunk",
    "graph_digest": "d" * 64,
    "weight_digests": ("b" * 64, "e" * 64),
    "flavour": "tensorrt",
    "flavour_version": "1.7.2",
    "plugin_digest": None,
    "architecture": "sm_90",
    "precision": "float32",
    "profiles": {"b": AxisRange(low=1, likely=4, high=64)},
    "options": {},
}


def write(content: bytes = b"engine"):
    def build(path: Path) -> dict[str, int]:
        (path / ENGINE).write_bytes(content)
        return {"PLUGIN_V3": 4}

    return build


def test_every_field_has_a_reason_and_a_test() -> None:
    assert set(REASONS) == set(EngineKey.model_fields) == set(OTHER)


@pytest.mark.parametrize("field", OTHER)
def test_each_field_changed_is_a_miss_with_its_reason(field: str, tmp_path: Path) -> None:
    build_once(tmp_path, KEY, write(), "0")
    changed = KEY.model_copy(update={field: OTHER[field]})
    assert changed.digest() != KEY.digest()
    verdict = find(tmp_path, changed)
    assert verdict.engine is None
    expected = "no engine of graph lm_chunk" if field == "graph" else REASONS[field].split("{")[0]
    assert len(verdict.reasons) == 1
    assert expected in verdict.reasons[0]


def test_a_built_engine_is_found_again_and_built_once(tmp_path: Path) -> None:
    first = build_once(tmp_path, KEY, write(), "0")
    again = build_once(tmp_path, KEY, write(b"another"), "0")
    assert first == again
    assert first.read_bytes() == b"engine"
    assert find(tmp_path, KEY).engine == first
    (line,) = list_engines(tmp_path)
    assert "lm_step for tensorrt-rtx 1.7.1 on sm_89, float16" in line
    assert line.endswith("sound")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / ENGINE).write_bytes(b"engina"), "altered after it was built"),
        (lambda f: (f / ENGINE).write_bytes(b"engine!"), "another size"),
        (lambda f: (f / ENGINE).unlink(), "missing"),
        (lambda f: ((f / ENGINE).rename(f / "x"), (f / ENGINE).symlink_to("x")), "a link"),
        (lambda f: (f / RECORD).unlink(), "interrupted or files are missing"),
        (lambda f: (f / RECORD).write_text("{"), "is damaged"),
        (
            lambda f: (f / RECORD).write_text(json.dumps(json.loads((f / RECORD).read_text()) | {"x": 1})),
            "is damaged",
        ),
        (lambda f: (f / RECORD).write_bytes(b" " * (2 << 20)), "larger than a record"),
    ],
)
def test_a_harmed_engine_is_never_given_out(harm, message: str, tmp_path: Path) -> None:
    folder = build_once(tmp_path, KEY, write(), "0").parent
    harm(folder)
    verdict = find(tmp_path, KEY)
    assert verdict.engine is None
    assert message in str(verdict)
    (line,) = list_engines(tmp_path)
    assert "not usable" in line
    rebuilt = build_once(tmp_path, KEY, write(b"fresh"), "0")
    assert rebuilt.read_bytes() == b"fresh"
    assert sorted(p.name for p in rebuilt.parent.iterdir()) == [ENGINE, RECORD]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> dict[str, int]:
        (path / ENGINE).write_bytes(b"half")
        raise EngineError("the builder failed")

    with pytest.raises(EngineError, match="the builder failed"):
        build_once(tmp_path, KEY, fail, "0")
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []
    assert find(tmp_path, KEY).engine is None


def _slow_build(path: Path) -> dict[str, int]:
    (path / ENGINE).write_bytes(b"half")
    (path.parent / f"started-{os.getpid()}").touch()
    time.sleep(0.3)
    (path / ENGINE).write_bytes(str(os.getpid()).encode())
    return {}


def _builder(cache: Path) -> None:
    build_once(cache, KEY, _slow_build, "0")


def test_two_builders_give_one_result(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_builder, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(list(tmp_path.glob("started-*"))) == 1
    assert find(tmp_path, KEY).engine is not None


def test_a_killed_build_is_not_found(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_builder, args=(tmp_path,))
    worker.start()
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("started-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert find(tmp_path, KEY).engine is None
    assert list(list_engines(tmp_path)) == []
    assert build_once(tmp_path, KEY, write(), "0").read_bytes() == b"engine"


def test_an_unwritable_cache_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write to the engine cache"):
        build_once(tmp_path / "file" / "cache", KEY, write(), "0")


def test_profiles_must_be_ordered() -> None:
    with pytest.raises(ValidationError, match="ascending"):
        AxisRange(low=4, likely=2, high=8)

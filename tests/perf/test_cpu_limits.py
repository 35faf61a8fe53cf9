"""The shares of a machine's limits: all forms at once or one after the other, the same table."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechssm.perf.cpu_limits import SHAPES, limits


@pytest.mark.parametrize("apart", [False, True])
def test_every_form_and_row_count_is_measured_and_nothing_is_left(tmp_path: Path, apart: bool) -> None:
    report = limits(
        SHAPES["tiny"], storages=("float32", "int4"), rows=(1, 2), threads=1, seconds=0.02, work=tmp_path,
        apart=apart,
    )  # fmt: skip
    assert {(s["storage"], s["rows"]) for s in report["steps"]} == {
        (storage, rows) for storage in ("float32", "int4") for rows in (1, 2)
    }
    assert all(s["steps"] >= 3 and s["step_ms"] > 0 and s["share_of_bandwidth"] > 0 for s in report["steps"])
    assert all((s["share_of_product_rate"] is None) is (s["rows"] == 1) for s in report["steps"])
    assert not list(tmp_path.iterdir())

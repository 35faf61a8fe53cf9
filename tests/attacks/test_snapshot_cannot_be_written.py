"""A snapshot to a place that cannot take it: the older file stays whole, nothing else is left."""

import resource
from pathlib import Path

import pytest

from speechssm.errors import SnapshotError
from speechssm.runtime.model import Model

from .attack import listing, one_sentence


@pytest.mark.parametrize("place", ["nowhere/s", "file/s", ".", "x" * 300, "/proc/s", "a\x00b"])
def test_refused(tmp_path: Path, model: Model, prompt: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with model.open(prompt, seed=1) as session:
        before = listing(tmp_path)
        with pytest.raises(SnapshotError) as caught:
            session.snapshot(tmp_path / place)
        one_sentence(str(caught.value), "cannot write the snapshot")
        assert listing(tmp_path) == before


def test_full_disk(tmp_path: Path, model: Model, prompt: Path) -> None:
    """A file size limit stands for the disk's end: it needs no root."""
    with model.open(prompt, seed=1) as session:
        path = session.snapshot(tmp_path / "s")
        before = listing(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, hard))
        try:
            with pytest.raises(SnapshotError) as caught:
                session.snapshot(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        one_sentence(str(caught.value), "File too large")
        assert listing(tmp_path) == before
    model.restore(path)

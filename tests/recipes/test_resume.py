"""A training that is stopped and started again ends where an uninterrupted one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from recipes import data, judge_tokenizer, places, targets, teach, tokenizer
from recipes.ahead import ahead
from recipes.teachers import align

CONFIG: dict[str, Any] = {
    "shape": {
        "vocab": 50, "mels": 20, "front_width": 8, "width": 12, "layers": 1, "heads": 2, "ff_width": 16, "kernel": 3,
    },
    "targets": {"least_frames": 1},
    "train": {
        "seed": 3, "steps": 6, "warmup": 2, "peak_rate": 0.01, "weight_decay": 0.02, "average": 0.9,
        "batch_seconds": 4, "crop_seconds": [1, 2], "phone_share": 0.3, "teacher_share": 0.3,
        "corpora": {"kathleen": 1.0},
    },
}  # fmt: skip


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Six noise recordings with made-up alignments."""
    rng = np.random.default_rng()
    root = tmp_path / "data"
    (root / "kathleen").mkdir(parents=True)
    (root / "librispeech").mkdir()
    (root / "stories.jsonl").write_text("")
    rows = []
    for i in range(1, 7):
        stem = f"arctic_a{i:04d}_1"
        noise = rng.standard_normal(int(16_000 * rng.uniform(1, 2.5))) * 0.1
        soundfile.write(root / "kathleen" / f"{stem}.ogg", noise, 16_000, format="OGG", subtype="OPUS")
        rows.append(f"{stem}\tText.")
    (root / "kathleen" / "transcripts.tsv").write_text("\n".join(rows) + "\n")
    return root


def prepare(root: Path) -> None:
    """What the stages before the training leave in the cache, made up."""
    rng = np.random.default_rng(1)
    for segment in teach.all_segments(root):
        tokens = -(-(segment.stop - segment.start) // 640)
        features = rng.standard_normal((tokens, 512)).astype(np.float16)
        places.write_arrays(teach.features_path(segment), {"h3": features})
        ends = np.cumsum(rng.uniform(0.05, 0.15, 40))
        align.save(segment.recording.key, [(int(rng.integers(40)), float(e)) for e in ends])
    targets.run(root, CONFIG)


def test_stopped_and_resumed_equals_uninterrupted(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, *stops: int) -> dict[str, torch.Tensor]:
        monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path / name))
        data.audio.cache_clear()
        prepare(corpora)
        real = tokenizer.rate
        for stop in stops:

            def interrupted(step: int, settings: dict[str, Any], stop: int = stop) -> float:
                if step == stop:
                    raise KeyboardInterrupt
                return real(step, settings)

            monkeypatch.setattr(tokenizer, "rate", interrupted)
            monkeypatch.setattr(tokenizer, "SAVE_SECONDS", 0.0)
            with pytest.raises(KeyboardInterrupt):
                tokenizer.run(corpora, CONFIG, "cpu")
            monkeypatch.setattr(tokenizer, "rate", real)
        tokenizer.run(corpora, CONFIG, "cpu")
        return places.load_tensors(tokenizer.folder() / "average.safetensors")

    whole, parts = train("whole"), train("parts", 2, 5)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=0, atol=0, msg=name)
    log = (tokenizer.folder().parent / "targets" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["units"] == 50
    shape = judge_tokenizer.TokenizerShape(**CONFIG["shape"])
    model = judge_tokenizer.load_model(tokenizer.folder() / "average.safetensors", shape)
    assert model(torch.randn(1, 5000)).shape == (1, 8)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_made_ahead_come_in_order(threads: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    assert list(ahead(make, 3, 40, threads)) == [i * i for i in range(3, 40)]
    some = ahead(make, 0, 10**9, threads)
    assert [next(some) for _ in range(5)] == [0, 1, 4, 9, 16]
    some.close()
    assert len(made) < 80

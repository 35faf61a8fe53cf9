"""The contestants of a GPU: caches changed in place give what the reference gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speechssm.bundle.shapes import LMShape
from speechssm.errors import SettingsError
from speechssm.export.models.griffin import Griffin, zero_state
from speechssm.export.models.transformer import at_capacity, transformer_shape
from speechssm.export.presets import PRESETS
from speechssm.perf import lm_gpu, throughput, torch_lm
from speechssm.perf.bench.run import Bench
from speechssm.perf.bench.settings import BenchSettings
from speechssm.perf.roofline import Roofline

TINY = PRESETS["tiny"].lm.model_copy(update={"window": 6, "kv_heads": 1})


@pytest.mark.parametrize(
    "shape",
    [TINY, transformer_shape(TINY, "mqa"), transformer_shape(TINY, "mha")],
    ids=["griffin", "mqa", "mha"],
)
def test_steps_in_place_are_the_reference(shape: LMShape, rng: np.random.Generator) -> None:
    """From nothing, past the window: 17 tokens of 3 rows."""
    tokens = torch.from_numpy(rng.integers(0, shape.vocab, (17, 3)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(rng.integers(1 << 31)))
        model = Griffin(at_capacity(shape, 17)).eval()
        state = zero_state(model.shape, 3)
        decoder = torch_lm.Decoder(model, 3, 0, room=17)
        for token in tokens:
            wanted, state = model.step(token, state)
            torch.testing.assert_close(decoder.step(token), wanted, atol=2e-4, rtol=2e-4)
            decoder.move_on()


def test_tokens_are_drawn_by_their_scores() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0]).repeat(20_000, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.bincount(torch_lm.sample(scores), minlength=3) / 20_000
    torch.testing.assert_close(drawn, torch.softmax(scores[0], 0), atol=0.02, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SettingsError, match="no CUDA device"):
        lm_gpu.run(None)  # type: ignore[arg-type]


def test_the_section_is_that_of_bench_lm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything but the GPU: models on the processor, steps that are not captured."""

    class Plain(torch_lm.TorchContestant):
        def rows_at(self, rows: int, position: int) -> Any:
            decoder = torch_lm.Decoder(self.model, rows, position)
            tokens = torch.zeros(rows, dtype=torch.int64)
            return SimpleNamespace(step=lambda: decoder.step(tokens))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_lm, "contestant", lambda name, shape: Plain(name, Griffin(shape).eval()))
    monkeypatch.setattr(lm_gpu, "ceilings", lambda: Roofline(1, 1e10, 1e10, 1e11))
    monkeypatch.setattr(throughput, "QUICK_TURN_S", 0.02)
    with torch.no_grad():
        section = lm_gpu.run(Bench(BenchSettings(quick=True, shape="tiny", budget_bytes=1 << 20), tmp_path))
    assert section.name == "lm-gpu"
    assert {plot.name for plot in section.plots} >= {"time-per-token", "throughput-ratio"}
    assert any(figure.name.startswith("throughput over transformer-mqa") for figure in section.figures)


@pytest.mark.gpu
def test_a_captured_step_moves_nothing_but_its_own_state() -> None:
    one = torch_lm.contestant("griffin", TINY)
    held = one.rows_at(2, 9)
    held.step()
    assert held.decoder.position == 9
    assert all(torch.isfinite(t).all() for pair in held.decoder.state for t in pair)

"""Descript's DAC at 16 kHz as codec graphs: equal to PyTorch, late by whole frames, refused when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speechssm.bundle.shapes import ReadyCodecShape
from speechssm.errors import ExportError
from speechssm.export.checkpoints.read import read_checkpoint
from speechssm.export.exporter import export_checkpoint
from speechssm.export.ready.part import ReadyPart
from tests.doubles.dac import DAC
from tests.doubles.ready import save_parts
from tests.export.test_lyra import Codec, uneven


def save(path: Path, model: DAC, **changes: torch.Tensor | None) -> Path:
    tensors = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, path)
    return path


@pytest.fixture
def model(rng: np.random.Generator) -> DAC:
    torch.manual_seed(int(rng.integers(1 << 30)))
    return DAC().eval()


def loaded(path: Path) -> tuple[ReadyCodecShape, Codec]:
    found = read_checkpoint(path)
    shape, part = found.shapes["codec"], found.sources["codec"]
    assert isinstance(shape, ReadyCodecShape)
    assert isinstance(part, ReadyPart)
    return shape, Codec(part)


@torch.no_grad()
def test_the_graphs_equal_pytorch(tmp_path: Path, model: DAC, rng: np.random.Generator) -> None:
    shape, codec = loaded(save(tmp_path / "dac.safetensors", model))
    assert (shape.source, shape.levels, shape.codes) == ("dac", 3, 16)
    audio = (0.3 * rng.standard_normal((2, 320 * 12))).astype(np.float32)
    codes = model.encode(torch.from_numpy(audio)).numpy()
    assert (codec.encode(audio) == codes).mean() > 0.97  # a tie may fall the other way
    frames, late = 40, shape.delay_frames
    codes = rng.integers(0, 16, (2, 3, frames))
    wanted = model.decode(torch.from_numpy(codes)).numpy()
    made = codec.decode(codes, [frames])[0]
    assert made.shape == (2, 320 * frames)
    # The last frames of a whole decode see padding where a stream sees what comes.
    n = 320 * (frames - 2 * late)
    assert 0 < n < wanted.shape[1]
    assert np.abs(made[:, 320 * late :][:, :n] - wanted[:, :n]).max() < 1e-4
    assert late <= 12


@torch.no_grad()
def test_chunks_equal_the_whole(tmp_path: Path, model: DAC, rng: np.random.Generator) -> None:
    """Within rounding: ONNX Runtime's sine has another last bit at the end of a vector."""
    _, codec = loaded(save(tmp_path / "dac.safetensors", model))
    codes = rng.integers(0, 16, (2, 3, 40))
    whole = codec.decode(codes, [40])
    for cuts in ([1] * 40, uneven(40, rng)):
        assert np.abs(codec.decode(codes, cuts)[0] - whole[0]).max() < 1e-5
    assert np.abs(codec.decode(codes[1:], [40])[0] - whole[0][1:]).max() < 1e-5


def test_new_names_of_weight_norm_and_a_bundle(tmp_path: Path, model: DAC) -> None:
    tensors = {
        k.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): v.detach().clone()
        for k, v in model.state_dict().items()
    }
    save_file(tensors, tmp_path / "dac.safetensors")
    checkpoint = save_parts(tmp_path / "ckpt")
    manifest = export_checkpoint(
        checkpoint, tmp_path / "out", parts={"codec": tmp_path / "dac.safetensors"}, rollout=8
    )
    assert manifest.codec is not None
    assert manifest.codec.shape.codes == 16
    assert "DAC, 3 levels of 16 codes" in manifest.about


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder__model__2__block__1__weight_v": None}, "no tensor decoder.model.2.block.1.weight_v"),
        ({"decoder__model__9__bias": torch.zeros(3)}, "a tensor decoder.model.9.bias that DAC does not have"),
        ({"encoder__block__1__block__0__block__1__bias": torch.zeros(3)}, r"has shape \[3\], expected \[4\]"),
        (
            {"quantizer__quantizers__1__codebook__weight": torch.full((16, 4), torch.nan)},
            "codebook.weight .* holds nan",
        ),
    ],
)
def test_damage_is_told(
    tmp_path: Path, model: DAC, change: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        read_checkpoint(save(tmp_path / "dac.safetensors", model, **change))

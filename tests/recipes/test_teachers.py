"""Readers of third-party parts, on files made here: no weight is downloaded."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.acoustic import voiceprint
from recipes.teachers import align, ctranslate2, whisper
from torch import nn

from speechssm.errors import SpeechSSMError


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def write_model(path: Path, arrays: dict[str, np.ndarray], version: int = 6) -> None:
    """A CTranslate2 model.bin with ``arrays`` and one alias of the first."""
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    out = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data = array.tobytes()
        out += string(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", codes[array.dtype.name], len(data)) + data
    path.write_bytes(out + struct.pack("<I", 1) + string("alias") + string(next(iter(arrays))))


def encoder_arrays(rng: np.random.Generator, scale: float = 0.05) -> dict[str, np.ndarray]:
    def new(*shape: int) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float16)

    d = whisper.WIDTH
    arrays = {
        "encoder/conv1/weight": new(d, 80, 3), "encoder/conv1/bias": new(d),
        "encoder/conv2/weight": new(d, d, 3), "encoder/conv2/bias": new(d),
        "encoder/position_encodings/encodings": new(1500, d),
    }  # fmt: skip
    for i in range(whisper.BLOCKS):
        layer = f"encoder/layer_{i}"
        for norm in ("self_attention/layer_norm", "ffn/layer_norm"):
            arrays[f"{layer}/{norm}/gamma"] = 1 + new(d)
            arrays[f"{layer}/{norm}/beta"] = new(d)
        for name, out, inside in (
            ("self_attention/linear_0", 3 * d, d),
            ("self_attention/linear_1", d, d),
            ("ffn/linear_0", 4 * d, d),
            ("ffn/linear_1", d, 4 * d),
        ):
            arrays[f"{layer}/{name}/weight"] = new(out, inside)
            arrays[f"{layer}/{name}/bias"] = new(out)
    return arrays


def test_model_bin_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    arrays = {
        "a/weight": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.integers(-9, 9, (2, 1, 4)).astype(np.int8),
        "heads": np.array(8, np.int16),
        "half": rng.standard_normal(7).astype(np.float16),
    }
    write_model(tmp_path / "model.bin", arrays)
    found = ctranslate2.read_arrays(tmp_path / "model.bin")
    assert set(found) == {*arrays, "alias"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["alias"], arrays["a/weight"])


def test_other_versions_and_torn_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_model(path, {"a": np.zeros((4, 4), np.float32)}, version=5)
    with pytest.raises(SpeechSSMError, match="format 5"):
        ctranslate2.read_arrays(path)
    write_model(path, {"a": np.zeros((400, 4), np.float32)})
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(SpeechSSMError, match="download it again"):
        ctranslate2.read_arrays(path)


def test_whisper_blocks_are_torch_encoder_layers(tmp_path: Path) -> None:
    """The same arrays in torch's own pre-norm layers give the same h3."""
    rng = np.random.default_rng()
    arrays = encoder_arrays(rng)
    write_model(tmp_path / "model.bin", arrays)
    ours = whisper.WhisperBlocks(tmp_path / "model.bin").eval()
    audio = torch.from_numpy(0.1 * rng.standard_normal((2, 9_600)).astype(np.float32))

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[f"encoder/{name}"].astype(np.float32))

    with torch.inference_mode():
        x = ours.mel(audio)
        for i, stride in ((1, 1), (2, 2)):
            conv = nn.Conv1d(x.shape[1], whisper.WIDTH, 3, stride, 1)
            conv.load_state_dict({"weight": tensor(f"conv{i}/weight"), "bias": tensor(f"conv{i}/bias")})
            x = nn.functional.gelu(conv(x))
        x = x.transpose(1, 2) + tensor("position_encodings/encodings")[: x.shape[2]]
        for i in range(whisper.BLOCKS):
            layer = nn.TransformerEncoderLayer(
                whisper.WIDTH, 8, 2048, 0.0, "gelu", batch_first=True, norm_first=True
            ).eval()
            at = f"layer_{i}/"
            layer.load_state_dict(
                {
                    "self_attn.in_proj_weight": tensor(at + "self_attention/linear_0/weight"),
                    "self_attn.in_proj_bias": tensor(at + "self_attention/linear_0/bias"),
                    "self_attn.out_proj.weight": tensor(at + "self_attention/linear_1/weight"),
                    "self_attn.out_proj.bias": tensor(at + "self_attention/linear_1/bias"),
                    "linear1.weight": tensor(at + "ffn/linear_0/weight"),
                    "linear1.bias": tensor(at + "ffn/linear_0/bias"),
                    "linear2.weight": tensor(at + "ffn/linear_1/weight"),
                    "linear2.bias": tensor(at + "ffn/linear_1/bias"),
                    "norm1.weight": tensor(at + "self_attention/layer_norm/gamma"),
                    "norm1.bias": tensor(at + "self_attention/layer_norm/beta"),
                    "norm2.weight": tensor(at + "ffn/layer_norm/gamma"),
                    "norm2.bias": tensor(at + "ffn/layer_norm/beta"),
                }
            )
            x = layer(x)
        found = ours(audio)
    assert found.shape == (2, 30, whisper.WIDTH)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_token_rate_averages_pairs() -> None:
    h3 = torch.randn(1, 7, 3)
    found = whisper.token_rate(h3, 4)
    torch.testing.assert_close(found[:, 1], h3[:, 2:4].mean(1))
    torch.testing.assert_close(found[:, 3], h3[:, 6])


def test_mel_filters_have_whispers_shape() -> None:
    """Slaney triangles: every filter has area 2/width, the first peaks near 40 Hz, no bin above 8 kHz."""
    filters = whisper.mel_filters()
    assert filters.shape == (80, 201)
    peaks_hz = filters.argmax(1) * 40
    assert (peaks_hz.diff() >= 0).all()
    assert 0 < peaks_hz[0] <= 80
    # 27 linear steps of 66.7 Hz per mel below 1 kHz, a constant ratio above.
    area = filters.sum(1)[40:] * 40
    assert torch.allclose(area, torch.ones(40), atol=0.08)


def test_phones_per_token_follow_the_middle_of_the_token() -> None:
    found = align.per_token([(5, 0.05), (7, 0.10)], 4)
    assert found.tolist() == [5, 7, 0, 0]
    assert align.phone_id("ax") == align.ID["AH"]
    assert align.phone_id("pau") == align.SILENCE
    assert align.phone_id("AY1") == align.ID["AY"]
    assert align.words("Well—“to-day,” said the King’s man.") == [
        "well",
        "to",
        "day",
        "said",
        "the",
        "king's",
        "man",
    ]


def test_voiceprint_weights_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHSSM_CACHE", str(tmp_path))
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(voiceprint.WEIGHTS, b"weights")
    asked: list[tuple[str, ...]] = []

    def download(requirements: tuple[str, ...], folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        asked.append(requirements)
        return [wheel]

    monkeypatch.setattr(voiceprint, "download", download)
    assert voiceprint.path().read_bytes() == b"weights"
    assert voiceprint.path().read_bytes() == b"weights"
    assert asked == [(voiceprint.PACKAGE,)]

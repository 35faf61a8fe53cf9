"""Lyra's TFLite files as codec graphs: equal to the files frame by frame, exact in any chunks, refused when damaged.

The small files are seeded and in the real layout. With ``SPEECHSSM_LYRA`` naming a folder of the real ones
(google/lyra, ``lyra/model_coeffs``) the last test runs on those.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

pytest.importorskip("tflite")

import speechssm
from speechssm.audio import AudioWriter
from speechssm.bundle.shapes import ReadyCodecShape
from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS
from speechssm.errors import ExportError
from speechssm.export.checkpoints import own
from speechssm.export.checkpoints.read import read_checkpoint
from speechssm.export.exporter import Quantizer, export_checkpoint
from speechssm.export.parts import seeded_model
from speechssm.export.ready.lite import read_lite
from speechssm.export.ready.lyra import DECODER, ENCODER, QUANTIZER, Lyra
from speechssm.export.ready.part import ReadyPart
from speechssm.export.ready.refit import refit
from tests.doubles.inline import inline_weights
from tests.doubles.lite_files import encoder, quantizer, save, save_lyra
from tests.doubles.lite_reference import LiteReference
from tests.doubles.ready import save_parts


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    return save_lyra(tmp_path / "lyra", int(rng.integers(1 << 30)))


class Codec:
    """The part's two graphs in ONNX Runtime."""

    def __init__(self, part: ReadyPart, threads: int = 1) -> None:
        self.state = part.graphs["codec_decode"][1]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.encoder, self.decoder = (
            ort.InferenceSession(
                inline_weights(part.graphs[name][0], {"codec": part.weights}).SerializeToString(),  # type: ignore[arg-type]
                options, providers=["CPUExecutionProvider"],
            )
            for name in ("codec_encode", "codec_decode")
        )  # fmt: skip

    def encode(self, audio: NDArray[np.float32]) -> NDArray[np.int64]:
        codes: NDArray[np.int64] = self.encoder.run(None, {"audio": audio})[0]
        return codes

    def decode(self, codes: NDArray[np.int64], cuts: list[int]) -> list[np.ndarray]:
        """Audio (b,n) and the state at the end."""
        state = [np.zeros((len(codes), *s.shape), s.dtype) for s in self.state]
        made, at = [], 0
        for frames in cuts:
            feeds = {f"in_{s.name}": array for s, array in zip(self.state, state, strict=True)}
            audio, *state = self.decoder.run(None, {"codes": codes[:, :, at : at + frames], **feeds})
            made.append(audio)
            at += frames
        return [np.concatenate(made, 1), *state]


def uneven(frames: int, rng: np.random.Generator) -> list[int]:
    cuts: list[int] = []
    while sum(cuts) < frames:
        cuts.append(min(int(rng.integers(1, 9)), frames - sum(cuts)))
    return cuts


def test_the_graphs_equal_the_files_run_frame_by_frame(folder: Path, rng: np.random.Generator) -> None:
    lyra = Lyra(folder)
    codec = Codec(lyra.part()[1])
    audio = (0.3 * rng.standard_normal((1, 320 * 12))).astype(np.float32)
    reference = LiteReference(read_lite(folder / ENCODER)[0])
    latents = [reference(audio[:, i : i + 320])[0, 0] for i in range(0, audio.shape[1], 320)]
    codes = np.zeros((1, 4, 12), np.int64)
    for frame, left in enumerate(latents):
        for level, book in enumerate(lyra.codebooks):
            codes[0, level, frame] = ((left - book) ** 2).sum(1).argmin()
            left = left - book[codes[0, level, frame]]
    assert (codec.encode(audio) == codes).mean() > 0.97  # a tie may fall the other way in float32
    decoder = LiteReference(read_lite(folder / DECODER)[0])
    decoded = [
        decoder(sum(lyra.codebooks[i][codes[0, i, f]] for i in range(4))[None, None])
        for f in range(12)  # type: ignore[index]
    ]
    wanted = np.concatenate(decoded, 1)
    assert np.abs(codec.decode(codes, [12])[0] - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("threads", [1, 2])
def test_any_chunking_and_any_batch_gives_the_same_bits(
    folder: Path, threads: int, rng: np.random.Generator
) -> None:
    codec = Codec(Lyra(folder).part()[1], threads)
    codes = rng.integers(0, 16, (3, 4, 120))
    whole = codec.decode(codes, [120])
    for cuts in ([1] * 120, [50, 70], uneven(120, rng)):
        for one, other in zip(whole, codec.decode(codes, cuts), strict=True):
            assert np.array_equal(one, other)
    for one, other in zip(whole, codec.decode(codes[1:2], uneven(120, rng)), strict=True):
        assert np.array_equal(one[1:2], other)
    audio = rng.standard_normal((3, 6400)).astype(np.float32)
    assert np.array_equal(codec.encode(audio)[2:], codec.encode(audio[2:]))


def test_a_bundle_with_lyras_codec_speaks(folder: Path, tmp_path: Path) -> None:
    checkpoint = save_parts(tmp_path / "ckpt", "tokenizer")
    shape = ACOUSTIC_PRESETS["tiny"].model_copy(update={"codes": 16})
    model = seeded_model("acoustic", shape, 0)
    own.write_checkpoint(checkpoint / "acoustic.safetensors", "acoustic", shape, model.state_dict())
    (folder / "LICENSE").write_text("Apache License\n   Version 2.0, January 2004\n")
    manifest = export_checkpoint(checkpoint, tmp_path / "out", parts={"codec": folder}, rollout=16)
    assert manifest.codec is not None
    assert manifest.codec.shape == ReadyCodecShape(source="lyra", levels=4, codes=16)
    assert manifest.licences == ("Apache-2.0 (google/lyra model_coeffs)",)
    assert "Lyra v2" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    speech = speechssm.load(tmp_path / "out").generate(audio, rate_hz=16_000, seconds=3, seed=1, ramp=True)
    assert speech.audio.shape == (48_000,)


def test_the_quantizer_is_fitted_anew(folder: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    speech = tmp_path / "speech"
    (speech / "reader").mkdir(parents=True)
    for i in range(2):
        with AudioWriter(speech / "reader" / f"{i}.wav") as file:
            file.write((0.2 * rng.standard_normal(16_000 * 8)).astype(np.float32))
    (speech / "note.wav").write_text("no sound")
    lyra = Lyra(folder)
    made = refit(lyra, speech, 3, 32, threads=1)
    assert made.codebooks.shape == (3, 32, 6)
    assert made.frames == 800
    assert 1 > made.left[0] > made.left[1] > made.left[2] > 0
    assert np.array_equal(refit(lyra, speech, 3, 32, threads=1).codebooks, made.codebooks)
    codes = Codec(lyra.part(made.codebooks)[1]).encode(
        (0.2 * rng.standard_normal((1, 64_000))).astype(np.float32)
    )
    assert codes.shape == (1, 3, 200)
    assert len(np.unique(codes[0, 0])) > 16
    checkpoint = save_parts(tmp_path / "ckpt")
    manifest = export_checkpoint(
        checkpoint, tmp_path / "out", parts={"codec": folder}, quantizer=Quantizer(speech, 2, 16), rollout=8
    )
    assert manifest.codec is not None
    assert (manifest.codec.shape.levels, manifest.codec.shape.codes) == (2, 16)
    with pytest.raises(ExportError, match="16 s of speech: 1024 codes a level need at least 410 s"):
        refit(lyra, speech, 12, 1024)
    with pytest.raises(ExportError, match="holds no recording"):
        refit(lyra, folder, 2, 16)


# damage


@pytest.mark.parametrize("name", [ENCODER, DECODER, QUANTIZER])
def test_a_file_cut_short_is_refused(folder: Path, name: str, rng: np.random.Generator) -> None:
    whole = (folder / name).read_bytes()
    for length in (0, 6, 100, int(rng.integers(100, len(whole)))):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(ExportError, match=name.replace(".", r"\.")):
            read_checkpoint(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / DECODER).unlink()
    with pytest.raises(ExportError, match=r"cannot read .*lyragan\.tflite"):
        read_checkpoint(folder)


def test_a_weight_that_is_not_finite_is_refused(folder: Path) -> None:
    writer, given, made = encoder(0)
    next(t for t in writer.tensors if t["kind"] == "float32" and t["data"] is not None)["data"][0] = np.nan
    save(folder / ENCODER, writer, given, made, "main")
    with pytest.raises(ExportError, match=r"tensor t\d+ of soundstream_encoder\.tflite is not finite"):
        read_checkpoint(folder)


def test_another_network_is_refused(folder: Path) -> None:
    save(folder / ENCODER, *quantizer(0), name="main")
    with pytest.raises(ExportError, match=r"holds an operation GATHER|is another network"):
        read_checkpoint(folder)
    save_lyra(folder)
    (folder / DECODER).write_bytes((folder / ENCODER).read_bytes())
    with pytest.raises(ExportError, match="leads from 1 to 6 channels"):
        read_checkpoint(folder)


def test_random_damage_is_never_a_traceback(folder: Path, rng: np.random.Generator) -> None:
    whole = np.frombuffer((folder / ENCODER).read_bytes(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(8, 4000, 6)] = rng.integers(0, 256, 6)
        (folder / ENCODER).write_bytes(damaged.tobytes())
        with contextlib.suppress(ExportError):
            Lyra(folder)


@pytest.mark.slow
@pytest.mark.skipif(
    "SPEECHSSM_LYRA" not in os.environ, reason="SPEECHSSM_LYRA names no folder of Lyra's files"
)
def test_the_real_files(rng: np.random.Generator) -> None:
    folder = Path(os.environ["SPEECHSSM_LYRA"])
    lyra = Lyra(folder)
    assert lyra.codebooks.shape == (46, 16, 64)
    codec = Codec(lyra.part()[1])
    codes = rng.integers(0, 16, (2, 46, 90))
    whole = codec.decode(codes, [90])
    for one, other in zip(whole, codec.decode(codes, uneven(90, rng)), strict=True):
        assert np.array_equal(one, other)
    reference = LiteReference(read_lite(folder / DECODER)[0])
    frames = [reference(lyra.codebooks[np.arange(46), codes[0, :, f]].sum(0)[None, None]) for f in range(8)]
    wanted = np.concatenate(frames, 1)
    # The files take a float bias off a tail that an int8 layer added a rounded one to; here it is added once.
    assert np.abs(whole[0][0, : 8 * 320] - wanted[0]).max() < 1e-3 * np.abs(wanted).max()
    audio = (0.1 * rng.standard_normal((1, 320 * 8))).astype(np.float32)
    encoder_reference = LiteReference(read_lite(folder / ENCODER)[0])
    made = codec.encode(audio)
    for frame in range(8):
        left = encoder_reference(audio[:, frame * 320 : (frame + 1) * 320])[0, 0]
        for level in range(6):  # beyond, a rounding may choose the other of two near codes
            code = int(((left - lyra.codebooks[level]) ** 2).sum(1).argmin())
            assert made[0, level, frame] == code
            left = left - lyra.codebooks[level][code]

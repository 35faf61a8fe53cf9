"""Ready ONNX files: what is taken, that the bundle computes what the file computes, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import speechssm
from speechssm.bundle import open_bundle
from speechssm.bundle.shapes import ReadyAcousticShape, ReadyTokenizerShape
from speechssm.engines.ort import OrtGraph
from speechssm.engines.verify import verify_bundle
from speechssm.errors import ExportError
from speechssm.export.exporter import export_checkpoint
from speechssm.export.graphs.builder import FLOAT, GraphBuilder
from speechssm.export.ready.acoustic import ready_acoustic
from speechssm.export.ready.tokenizer import ready_tokenizer
from speechssm.export.ready.whisper_mel import mel_filters, whisper_mel
from speechssm.runtime.acoustic import Told
from tests.doubles.ready import save_acoustic, save_parts, save_s3_tokenizer, save_tokenizer


def plain_log_mel(audio: np.ndarray, mels: int) -> np.ndarray:
    """Whisper's features (mels, frames) in float64, frame by frame."""
    padded = np.pad(audio.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [padded[i : i + 400] * window for i in range(0, len(audio), 160)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    log = np.log10(np.maximum(mel_filters(mels).astype(np.float64) @ power.T, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made: list[np.ndarray] = session.run(None, feeds)
    return made


@pytest.mark.parametrize(("opset", "mels", "samples"), [(13, 80, 6400), (17, 128, 12_160), (23, 40, 6333)])
def test_log_mel_is_whispers(opset: int, mels: int, samples: int, rng: np.random.Generator) -> None:
    g = GraphBuilder("mel", opset=opset)
    g.output("mel", whisper_mel(g, g.input("audio", FLOAT, ("b", "n")), mels), FLOAT, ("b", mels, "f"))
    audio = (rng.standard_normal((2, samples)) * [[0.2], [0.001]]).astype(np.float32)
    (mel,) = run(g.model(), {"audio": audio})
    whole = np.pad(audio, ((0, 0), (0, -samples % 640)))
    assert mel.shape == (2, mels, -(-samples // 640) * 4)
    for row in range(2):
        assert np.abs(mel[row] - plain_log_mel(whole[row], mels)).max() < 1e-4


def test_log_mel_is_that_of_transformers(rng: np.random.Generator) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    assert np.abs(extractor.mel_filters.T - mel_filters(128)).max() < 1e-7
    audio = (0.1 * rng.standard_normal(480_000)).astype(np.float32)
    g = GraphBuilder("mel")
    g.output("mel", whisper_mel(g, g.input("audio", FLOAT, ("b", "n")), 128), FLOAT, ("b", 128, "f"))
    (mel,) = run(g.model(), {"audio": audio[None]})
    theirs = extractor(audio, sampling_rate=16_000, return_tensors="np").input_features
    assert np.abs(mel - theirs).max() < 1e-3


def test_a_bundle_of_ready_files_speaks(tmp_path: Path) -> None:
    checkpoint = save_parts(tmp_path / "ckpt", "codec")
    tokenizer, acoustic = save_s3_tokenizer(tmp_path / "s3.onnx"), save_acoustic(tmp_path / "a.onnx")
    manifest = export_checkpoint(
        checkpoint, tmp_path / "out", onnx={"tokenizer": tokenizer, "acoustic": acoustic}, rollout=16
    )
    assert manifest.speaks
    assert manifest.tokenizer is not None
    assert manifest.acoustic is not None
    assert manifest.tokenizer.shape == ReadyTokenizerShape(vocab=64, features="log_mel")
    assert isinstance(manifest.acoustic.shape, ReadyAcousticShape)
    bundle = open_bundle(tmp_path / "out")
    assert "codec_decode: loads and runs" in list(verify_bundle(bundle))
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    speech = speechssm.load(tmp_path / "out").generate(audio, rate_hz=16_000, seconds=3, seed=1)
    assert len(speech.audio) == 48_000
    assert np.isfinite(speech.audio).all()
    # Weights lie in the part's own file, none in the graph.
    assert (tmp_path / "out" / "tokenizer.safetensors").stat().st_size > 30_000
    assert (tmp_path / "out" / "tokenizer.onnx").stat().st_size < 30_000


def test_the_bundle_computes_what_the_files_compute(tmp_path: Path, rng: np.random.Generator) -> None:
    checkpoint = save_parts(tmp_path / "ckpt", "codec")
    tokenizer, acoustic = save_tokenizer(tmp_path / "t.onnx"), save_acoustic(tmp_path / "a.onnx")
    export_checkpoint(
        checkpoint, tmp_path / "out", onnx={"tokenizer": tokenizer, "acoustic": acoustic}, rollout=16
    )
    bundle = open_bundle(tmp_path / "out")
    audio = (0.1 * rng.standard_normal((2, 64_000))).astype(np.float32)
    (tokens,) = OrtGraph("tokenizer", *bundle.graph("tokenizer")).call({"audio": audio}, ["tokens"])
    assert np.array_equal(tokens, run(onnx.load(tokenizer), {"audio": audio})[0])
    t, prompt, frames = 20, 75, 150
    known = rng.random((2, 4, 2 * t)) < 0.5
    window = {
        "tokens": rng.integers(0, 64, (2, t)),
        "codes": np.where(known, rng.integers(0, 32, known.shape), 1 << 40),
        "known": known,
        "noise": rng.random((2, 2 * t), np.float32),
    }
    fixed = {"level": np.array(2), "temperature": np.array(1, np.float32)}
    voice = {"tokens": rng.integers(0, 64, (2, prompt)), "codes": rng.integers(0, 32, (2, 4, frames))}
    listen = OrtGraph("acoustic_prompt", *bundle.graph("acoustic_prompt"))
    told = dict(zip(Told._fields, listen.call(voice, Told._fields), strict=True))
    graph = OrtGraph("acoustic", *bundle.graph("acoustic"))
    ours = graph.call({**window, **fixed, **told}, ["codes_out", "confidence"])
    whole = {
        "tokens": np.concatenate([voice["tokens"], window["tokens"]], 1),
        "codes": np.concatenate([voice["codes"], np.where(known, window["codes"], 0)], 2),
        "known": np.concatenate([np.ones((2, 4, frames), bool), known], 2),
        "noise": np.concatenate([np.zeros((2, frames), np.float32), window["noise"]], 1),
    }
    for mine, theirs in zip(ours, run(onnx.load(acoustic), {**whole, **fixed}), strict=True):
        assert np.array_equal(mine, theirs[:, frames:])


def refused(tmp_path: Path, match: str, **ready: Path) -> None:
    """The export of ``ready`` files fails with one clear sentence and leaves nothing."""
    checkpoint = save_parts(tmp_path / "ckpt", "codec")
    with pytest.raises(ExportError, match=match) as caught:
        export_checkpoint(checkpoint, tmp_path / "out", onnx=ready, rollout=4)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_another_token_rate_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        "gives 1500 tokens for 30 s, expected 750",
        tokenizer=save_s3_tokenizer(tmp_path / "s3.onnx", halvings=1),
    )


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "expected 0 to 63", tokenizer=save_s3_tokenizer(tmp_path / "s3.onnx", vocab=4096))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = save_tokenizer(tmp_path / "t.onnx")
    path.write_bytes(path.read_bytes()[:-1000])
    refused(tmp_path, "t.onnx is not a whole ONNX file", tokenizer=path)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "there is no ONNX file at", acoustic=tmp_path / "none.onnx")


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = onnx.load(save_acoustic(tmp_path / "a.onnx"))
    at = next(i for i, t in enumerate(model.graph.initializer) if t.data_type == FLOAT and len(t.dims) == 2)
    name = model.graph.initializer[at].name
    array = numpy_helper.to_array(model.graph.initializer[at]).copy()
    array[0, 0] = np.nan
    model.graph.initializer[at].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "a.onnx")
    refused(tmp_path, f"weight ready/{name} of a.onnx is not finite", acoustic=tmp_path / "a.onnx")


def test_an_operator_of_another_domain_is_refused(tmp_path: Path) -> None:
    model = onnx.load(save_tokenizer(tmp_path / "t.onnx"))
    extra = model.graph.node.add()
    extra.op_type, extra.domain, extra.name = "Mystery", "evil.example", "extra"
    extra.input.append("audio")
    extra.output.append("nothing")
    model.opset_import.add(domain="evil.example", version=1)
    onnx.save(model, tmp_path / "t.onnx")
    refused(tmp_path, "evil.example", tokenizer=tmp_path / "t.onnx")


def test_another_signature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"has the outputs|has the inputs tokens int64 .* expected audio \(b,n\)"
    ):
        ready_tokenizer(save_acoustic(tmp_path / "a.onnx"), 64)
    with pytest.raises(ExportError, match=r"has an input audio of float and rank 2|has no input tokens"):
        ready_acoustic(save_tokenizer(tmp_path / "t.onnx"), 64, 32)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    model = onnx.load(save_s3_tokenizer(tmp_path / "s3.onnx"))
    model.opset_import[0].version = 9
    onnx.save(model, tmp_path / "s3.onnx")
    with pytest.raises(ExportError, match=r"not a whole ONNX file|opset 9, expected 13 to 23"):
        ready_tokenizer(tmp_path / "s3.onnx", 64)


def test_rows_that_depend_on_each_other_are_refused(tmp_path: Path) -> None:
    """A tokenizer that subtracts the mean of its batch."""
    model = onnx.load(save_tokenizer(tmp_path / "t.onnx"))
    mean = onnx.helper.make_node("ReduceMean", ["audio", "first_axis"], ["mean"])
    less = onnx.helper.make_node("Sub", ["audio", "mean"], ["heard"])
    for node in model.graph.node:
        node.input[:] = ["heard" if name == "audio" else name for name in node.input]
    nodes = [mean, less, *model.graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first_axis"))
    onnx.save(model, tmp_path / "t.onnx")
    refused(tmp_path, "rows of a batch must not depend", tokenizer=tmp_path / "t.onnx")


def test_an_acoustic_file_needs_its_codec(tmp_path: Path) -> None:
    checkpoint = save_parts(tmp_path / "ckpt")
    with pytest.raises(ExportError, match="give the codec it was trained with"):
        export_checkpoint(
            checkpoint, tmp_path / "out", onnx={"acoustic": save_acoustic(tmp_path / "a.onnx")}, rollout=4
        )


def test_a_part_given_twice_is_refused(tmp_path: Path) -> None:
    checkpoint = save_parts(tmp_path / "ckpt", "tokenizer")
    with pytest.raises(ExportError, match="the part tokenizer was given twice"):
        export_checkpoint(
            checkpoint,
            tmp_path / "out",
            parts={"tokenizer": checkpoint / "tokenizer.safetensors"},
            onnx={"tokenizer": save_tokenizer(tmp_path / "t.onnx")},
        )

"""The codec's reference, its graphs against the reference, and what the shape refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from pydantic import ValidationError

from speechssm.axes import FRAME_SAMPLES
from speechssm.bundle.shapes.codec import CODEC_PRESETS, CodecShape
from speechssm.errors import SettingsError
from speechssm.export.graphs.builder import FLOAT16
from speechssm.export.graphs.codec import (
    PART,
    build_codec_decode,
    build_codec_encode,
    codec_state,
    codec_weights,
)
from speechssm.export.models.codec import Codec
from tests.doubles.inline import inline_weights

TINY = CODEC_PRESETS["tiny"]
ODD = CodecShape(
    levels=3,
    codes=11,
    latent=5,
    encoder_width=9,
    encoder_layers=2,
    decoder_width=13,
    decoder_layers=1,
    expansion=2,
    kernel=4,
    fft=960,
    lookahead=1,
    bands=7,
)
SHAPES = {"tiny": TINY, "odd": ODD}


def seeded(shape: CodecShape, seed: int = 0) -> Codec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Codec(shape).eval()


def session(model: Any) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def silent_state(shape: CodecShape, rows: int) -> dict[str, np.ndarray]:
    return {f"in_{s.name}": np.zeros((rows, *s.shape), np.float32) for s in codec_state(shape)}


def fit_codebooks(model: Codec, rng: np.random.Generator) -> None:
    """Codes at randomly chosen residuals, so that the choice among them is a real one."""
    with torch.no_grad():
        left = model.encoder(torch.from_numpy(speechlike(rng, 4, 80 * FRAME_SAMPLES))).flatten(0, 1)
        for book in model.codebooks:
            book.copy_(left[torch.from_numpy(rng.permutation(len(left))[: len(book)])])
            left = left - book[torch.cdist(left, book).argmin(1)]


def speechlike(rng: np.random.Generator, rows: int, samples: int) -> np.ndarray:
    """Harmonics under a moving envelope, plus noise: something the encoder's bands differ on."""
    time = np.arange(samples) / 16_000
    pitch = rng.uniform(90, 250, (rows, 1))
    tones = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6, (rows, 1))) / k for k in range(1, 9))
    envelope = np.abs(np.sin(2 * np.pi * rng.uniform(2, 5, (rows, 1)) * time))
    return (0.1 * envelope * tones + 0.01 * rng.standard_normal((rows, samples))).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_decode_graph_equals_the_reference(name: str) -> None:
    shape, rng = SHAPES[name], np.random.default_rng()
    model = seeded(shape)
    graph = session(inline_weights(build_codec_decode(shape), {PART: codec_weights(model)}))
    codes = rng.integers(0, shape.codes, (3, shape.levels, 37))
    state = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in silent_state(shape, 3).items()}
    audio, *after = graph.run(None, {"codes": codes, **state})
    with torch.no_grad():
        before = [torch.from_numpy(v) for v in state.values()]
        expected, carried = model.decode(torch.from_numpy(codes), before)
    assert audio.shape == (3, 37 * FRAME_SAMPLES)
    np.testing.assert_allclose(audio, expected.numpy(), atol=1e-5)
    for got, want in zip(after, carried, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_encode_graph_chooses_the_nearest_codes(name: str) -> None:
    """Chosen codes are within rounding of the nearest, judged in float64 on the reference's latents."""
    shape, rng = SHAPES[name], np.random.default_rng()
    model = seeded(shape)
    fit_codebooks(model, rng)
    graph = session(inline_weights(build_codec_encode(shape), {PART: codec_weights(model)}))
    audio = speechlike(rng, 3, 41 * FRAME_SAMPLES)
    (codes,) = graph.run(None, {"audio": audio})
    assert codes.shape == (3, shape.levels, 41)
    assert codes.dtype == np.int64
    with torch.no_grad():
        left = model.encoder(torch.from_numpy(audio)).double().numpy()
    for level, book in enumerate(model.codebooks.detach().double().numpy()):
        distance = np.square(left[:, :, None] - book).sum(-1)
        chosen = np.take_along_axis(distance, codes[:, level, :, None], -1)[..., 0]
        np.testing.assert_array_less(chosen, distance.min(-1) + 1e-4)
        left = left - book[codes[:, level]]
    with torch.no_grad():
        assert (model.encode(torch.from_numpy(audio)).numpy() == codes).mean() > 0.98
    assert all(len(np.unique(codes[:, level])) > 2 for level in range(shape.levels))


@pytest.mark.parametrize("name", SHAPES)
def test_streaming_reference_equals_whole(name: str) -> None:
    shape, rng = SHAPES[name], np.random.default_rng()
    model = seeded(shape)
    codes = torch.from_numpy(rng.integers(0, shape.codes, (2, shape.levels, 23)))
    with torch.no_grad():
        whole, last = model.decode(codes)
        state, parts = None, []
        for chunk in codes.split([1, 2, 3, 7, 10], dim=-1):
            audio, state = model.decode(chunk, state)
            parts.append(audio)
    assert whole.shape == (2, 23 * FRAME_SAMPLES)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
    for got, want in zip(state or [], last, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_decoding_looks_at_no_later_frame() -> None:
    """Samples of frame i are final once frame i is known: no delay is added."""
    model, rng = seeded(TINY), np.random.default_rng()
    codes = torch.from_numpy(rng.integers(0, TINY.codes, (1, TINY.levels, 30)))
    other = codes.clone()
    other[..., 17:] = (other[..., 17:] + 5) % TINY.codes
    with torch.no_grad():
        a, b = model.decode(codes)[0], model.decode(other)[0]
    torch.testing.assert_close(a[:, : 17 * FRAME_SAMPLES], b[:, : 17 * FRAME_SAMPLES], atol=0, rtol=0)
    assert (a - b)[:, 17 * FRAME_SAMPLES : 18 * FRAME_SAMPLES].any()


def test_encoding_looks_ahead_by_window_and_lookahead_only() -> None:
    model, rng = seeded(ODD), np.random.default_rng()
    audio = torch.from_numpy(speechlike(rng, 1, 40 * FRAME_SAMPLES))
    frame = 20
    reach = (frame + ODD.lookahead) * FRAME_SAMPLES + ODD.fft
    changed = audio.clone()
    changed[:, reach:] += 0.3
    with torch.no_grad():
        a, b = model.encoder(audio), model.encoder(changed)
    torch.testing.assert_close(a[:, : frame + 1], b[:, : frame + 1], atol=1e-5, rtol=0)
    assert (a[:, frame + 1] - b[:, frame + 1]).abs().max() > 1e-4


def test_zero_padding_of_shorter_rows_changes_no_code() -> None:
    """S2 for the encoder: a row padded with zeros to its batch's length keeps its codes."""
    model, rng = seeded(TINY), np.random.default_rng()
    graph = session(inline_weights(build_codec_encode(TINY), {PART: codec_weights(model)}))
    audio = speechlike(rng, 1, 25 * FRAME_SAMPLES)
    padded = np.pad(audio, ((0, 0), (0, 30 * FRAME_SAMPLES)))
    (alone,), (longer,) = graph.run(None, {"audio": audio}), graph.run(None, {"audio": padded})
    np.testing.assert_array_equal(alone, longer[..., :25])


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_seeded_weights_speak_at_a_twentieth(name: str) -> None:
    shape, rng = CODEC_PRESETS[name], np.random.default_rng()
    codes = torch.from_numpy(rng.integers(0, shape.codes, (1, shape.levels, 200)))
    with torch.no_grad():
        audio, _ = seeded(shape, int(rng.integers(1 << 31))).decode(codes)
    assert audio.square().mean().sqrt().item() == pytest.approx(0.05, rel=0.25)


def test_long_decoding_stays_level() -> None:
    """10 minutes in chunks of 30 s: the loudness of the last chunk is that of the first."""
    model, rng = seeded(TINY), np.random.default_rng()
    graph = session(inline_weights(build_codec_decode(TINY), {PART: codec_weights(model)}))
    state, loudness = silent_state(TINY, 1), []
    names = [o.name for o in graph.get_outputs()]
    for _ in range(20):
        codes = rng.integers(0, TINY.codes, (1, TINY.levels, 1500))
        audio, *after = graph.run(names, {"codes": codes, **state})
        state = {f"in_{n.removeprefix('out_')}": v for n, v in zip(names[1:], after, strict=True)}
        loudness.append(float(np.sqrt(np.square(audio).mean())))
    assert max(loudness) < 1.1 * min(loudness)


def test_float16_storage_costs_little() -> None:
    model, rng = seeded(TINY), np.random.default_rng()
    weights = {PART: codec_weights(model)}
    feed = {"codes": rng.integers(0, TINY.codes, (1, TINY.levels, 50)), **silent_state(TINY, 1)}
    full = session(inline_weights(build_codec_decode(TINY), weights)).run(["audio"], feed)[0]
    half = session(inline_weights(build_codec_decode(TINY, FLOAT16), weights)).run(["audio"], feed)[0]
    assert 0 < np.abs(full - half).max() < 0.01


def test_demo_is_within_its_budget() -> None:
    shape = CODEC_PRESETS["demo"]
    assert sum(p.numel() for p in Codec(shape).parameters()) <= 3_500_000
    assert shape.bit_rate == 4000
    for build in (build_codec_encode, build_codec_decode):
        assert build(shape).model().ByteSize() < 500_000, "constant matrices must be gathers, not bytes"


@pytest.mark.parametrize(
    "wrong", [{"fft": 1000}, {"fft": 320}, {"kernel": 1}, {"bands": 1}, {"lookahead": -1}, {"widht": 3}]
)
def test_shape_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        CodecShape(**{**TINY.model_dump(), **wrong})


@pytest.mark.parametrize("samples", [0, 1, 319, 321])
def test_encode_takes_whole_frames(samples: int) -> None:
    with pytest.raises(SettingsError, match="multiple"):
        seeded(TINY).encode(torch.zeros(1, samples))

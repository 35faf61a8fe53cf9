"""The acoustic graph against its PyTorch reference, its sampler, and what the shape refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from pydantic import ValidationError

from speechssm.bundle.shapes.acoustic import ACOUSTIC_PRESETS, AcousticShape
from speechssm.export.graphs.acoustic import PART, acoustic_weights, build_acoustic, build_acoustic_prompt
from speechssm.export.graphs.builder import BOOL, FLOAT, FLOAT16, INT64, GraphBuilder
from speechssm.export.graphs.code_sampler import choose_code
from speechssm.export.models.acoustic import Acoustic
from tests.doubles.inline import inline_weights

TINY = ACOUSTIC_PRESETS["tiny"]
ODD = AcousticShape(
    vocab=19,
    levels=3,
    codes=27,
    width=42,
    layers=3,
    heads=3,
    ff_width=29,
    kernel=3,
    code_width=7,
    radius=13,
    prompt_tokens=5,
    max_tokens=60,
)
SHAPES = {
    "tiny": TINY,
    "odd": ODD,
    "whole": TINY.model_copy(update={"radius": None}),
    "wide": TINY.model_copy(update={"radius": 64, "kernel": 1}),
}


def seeded(shape: AcousticShape, seed: int = 0) -> Acoustic:
    """A model whose biases and scales differ from their initial 0 and 1, as trained ones do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Acoustic(shape).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.3 * torch.randn_like(parameter)
    return model


def session(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Pair:
    """Both acoustic graphs as the reference: a window's inputs with the speaker prompt in front."""

    def __init__(
        self, shape: AcousticShape, weights: dict[str, np.ndarray], stored: int = FLOAT, threads: int = 1
    ) -> None:
        self.shape = shape
        self.prompt = session(inline_weights(build_acoustic_prompt(shape, stored), {PART: weights}), threads)
        window = build_acoustic(shape, stored, logits=True)
        self.window = session(inline_weights(window, {PART: weights}), threads)

    def told(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        prompt = self.shape.prompt_tokens
        spoken = {"tokens": given["tokens"][:, :prompt], "codes": given["codes"][..., : 2 * prompt]}
        return dict(zip(("keys", "values", "voice"), self.prompt.run(None, spoken), strict=True))

    def run(self, names: list[str] | None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        prompt = self.shape.prompt_tokens
        cut = {k: given[k][..., 2 * prompt :] for k in ("codes", "known", "noise")}
        left = {k: given[k] for k in ("level", "temperature")}
        feed = {"tokens": given["tokens"][:, prompt:], **cut, **left, **self.told(given)}
        return list(self.window.run(names, feed))


def graph_of(model: Acoustic, *, stored: int = FLOAT) -> Pair:
    return Pair(model.shape, acoustic_weights(model), stored)


def windows(shape: AcousticShape, rows: int, tokens: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of ``rows`` windows of ``tokens``; codes that are not known are garbage."""
    t = shape.prompt_tokens + tokens
    known = rng.random((rows, shape.levels, 2 * t)) < rng.random((rows, shape.levels, 1))
    known[..., : shape.prompt_frames] = True
    codes = rng.integers(0, shape.codes, known.shape)
    garbage = rng.choice([-1, -(2**40), 2**40, shape.codes], known.shape)
    return {
        "tokens": rng.integers(0, shape.vocab, (rows, t)),
        "codes": np.where(known, codes, garbage),
        "known": known,
        "level": np.array(rng.integers(shape.levels)),
        "temperature": np.array(rng.uniform(0.5, 1.5), np.float32),
        "noise": rng.random((rows, 2 * t), np.float32),
    }


def reference(model: Acoustic, given: dict[str, np.ndarray]) -> np.ndarray:
    tokens, codes, known = (torch.from_numpy(given[k]) for k in ("tokens", "codes", "known"))
    with torch.no_grad():
        logits: np.ndarray = model(tokens, codes, known, int(given["level"])).numpy()
    return logits


@pytest.mark.parametrize("tokens", [1, 7, 20, 31, 50])
@pytest.mark.parametrize("name", SHAPES)
def test_graph_equals_the_reference(name: str, tokens: int, rng: np.random.Generator) -> None:
    """Windows shorter and longer than the radius, and not a multiple of it."""
    shape = SHAPES[name]
    model = seeded(shape, int(rng.integers(1 << 31)))
    given = windows(shape, 3, tokens, rng)
    _, _, logits = graph_of(model).run(None, given)
    want = reference(model, given)
    assert want.std() > 0.3
    np.testing.assert_allclose(logits, want, atol=1e-4, rtol=0)


def test_graph_equals_the_reference_at_the_longest_bucket_of_the_demo(rng: np.random.Generator) -> None:
    shape = ACOUSTIC_PRESETS["demo"]
    model = seeded(shape)
    given = windows(shape, 1, shape.max_tokens, rng)
    _, _, logits = graph_of(model).run(None, given)
    np.testing.assert_allclose(logits, reference(model, given), atol=1e-4, rtol=0)


def test_levels_may_differ_by_row_in_training(rng: np.random.Generator) -> None:
    model, given = seeded(ODD), windows(ODD, 3, 9, rng)
    tokens, codes, known = (torch.from_numpy(given[k]) for k in ("tokens", "codes", "known"))
    with torch.no_grad():
        mixed = model(tokens, codes, known, torch.tensor([2, 0, 1])).numpy()
    for row, level in enumerate((2, 0, 1)):
        np.testing.assert_allclose(
            mixed[row], reference(model, {**given, "level": np.array(level)})[row], atol=1e-5
        )


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_outputs_follow_the_logits(name: str, rng: np.random.Generator) -> None:
    """Known codes come back; others are the argmax at temperature 0; confidence is their log-probability."""
    shape = SHAPES[name]
    given = windows(shape, 4, 21, rng)
    given["temperature"] = np.array(0, np.float32)
    codes, confidence, logits = graph_of(seeded(shape)).run(None, given)
    prompt, level = shape.prompt_frames, int(given["level"])
    known, before = given["known"][:, level, prompt:], given["codes"][:, level, prompt:]
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes[known], before[known])
    np.testing.assert_array_equal(codes[~known], logits.argmax(-1)[~known])
    log = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    want = np.take_along_axis(log, codes[..., None], -1)[..., 0]
    np.testing.assert_allclose(confidence, want, atol=1e-5)


def test_confidence_does_not_depend_on_the_sampling_temperature(rng: np.random.Generator) -> None:
    graph, given = graph_of(seeded(TINY)), windows(TINY, 2, 13, rng)
    hot = graph.run(None, {**given, "temperature": np.array(1.3, np.float32)})
    cold = graph.run(None, {**given, "temperature": np.array(0.7, np.float32)})
    same = hot[0] == cold[0]
    assert 0 < same.mean() < 1
    np.testing.assert_array_equal(hot[1][same], cold[1][same])


def test_window_frames_reach_only_their_neighbours_and_the_prompt(rng: np.random.Generator) -> None:
    """A code changes the logits of frames within layers x (radius + kernel // 2) and of no other."""
    model, given = seeded(ODD), windows(ODD, 1, 60, rng)
    prompt, at = ODD.prompt_frames, 60
    given["known"][:, 0, prompt + at] = True
    given["codes"][:, 0, prompt + at] = 3
    graph = graph_of(model)
    first = graph.run(["logits"], given)[0]
    given["codes"][:, 0, prompt + at] = 4
    second = graph.run(["logits"], given)[0]
    reach = ODD.layers * ((ODD.radius or 0) + ODD.kernel // 2)
    moved = np.flatnonzero((first != second).any(axis=(0, 2)))
    # Nearer the limit the change is lost in rounding, but it must pass two layers' radius.
    assert at - reach <= moved.min() < at - 2 * 13
    assert at + 2 * 13 < moved.max() <= at + reach
    given["codes"][:, 0, 0] = (given["codes"][:, 0, 0] + 1) % ODD.codes
    assert (graph.run(["logits"], given)[0] != second).any(axis=(0, 2)).all(), (
        "the prompt reaches every frame"
    )


def test_the_prompt_hears_nothing_of_the_window(rng: np.random.Generator) -> None:
    """What a session's windows take from the prompt is the same in every pass."""
    model, given = seeded(TINY), windows(TINY, 2, 11, rng)
    tokens, codes = torch.from_numpy(given["tokens"]), torch.from_numpy(given["codes"])
    known = torch.from_numpy(given["known"])
    with torch.no_grad():
        voice = model.listen(tokens[:, :75], codes[..., :150])
        hidden = model.hidden(tokens[:, 75:], codes[..., 150:], known[..., 150:], voice)
        apart = model.logits(hidden, int(given["level"])).numpy()
    np.testing.assert_allclose(apart, reference(model, given), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_scores_of_any_size_equal_the_reference(scale: float, rng: np.random.Generator) -> None:
    """Keys out of reach get no weight, however large the scores are that the mask must outdo."""
    model = seeded(ODD)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.qkv.weight[: 2 * ODD.width] *= scale**0.5  # type: ignore[union-attr, index, operator]
    given = windows(ODD, 2, 40, rng)
    logits = graph_of(model).run(["logits"], given)[0]
    np.testing.assert_allclose(logits, reference(model, given), atol=1e-4 * scale, rtol=0)


def test_no_weight_of_attention_is_a_denormal_number(rng: np.random.Generator) -> None:
    """They are correct and took four fifths of Softmax's time."""
    shape = TINY
    pair, given = graph_of(seeded(shape)), windows(shape, 1, 50, rng)
    window = build_acoustic(shape)
    model = inline_weights(window, {PART: acoustic_weights(seeded(shape))})
    name = next(n.output[0] for n in model.graph.node if n.op_type == "Softmax" and "L01" in n.name)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    prompt = shape.prompt_tokens
    feed = {k: given[k][..., 2 * prompt :] for k in ("codes", "known", "noise")} | pair.told(given)
    feed |= {
        "tokens": given["tokens"][:, prompt:],
        "level": given["level"],
        "temperature": given["temperature"],
    }
    weight = session(model).run([name], feed)[0]
    assert 0 < weight.min() < 1e-16, "some keys are out of reach"
    assert weight.min() > np.finfo(np.float32).tiny


def test_float16_storage_costs_little(rng: np.random.Generator) -> None:
    model, given = seeded(TINY), windows(TINY, 2, 17, rng)
    full = graph_of(model).run(["logits"], given)[0]
    half = graph_of(model, stored=FLOAT16).run(["logits"], given)[0]
    assert 0 < np.abs(full - half).max() < 0.03


def sampler(codes: int) -> ort.InferenceSession:
    g = GraphBuilder("sampler")
    logits = g.input("logits", FLOAT, ("b", "f", codes))
    temperature = g.input("temperature", FLOAT, ())
    uniform, given = g.input("uniform", FLOAT, ("b", "f")), g.input("given", INT64, ("b", "f"))
    fixed = g.input("fixed", BOOL, ("b", "f"))
    code, logprob = choose_code(g, logits, codes, temperature, uniform, given, fixed)
    g.output("code", code, INT64, ("b", "f"))
    g.output("logprob", logprob, FLOAT, ("b", "f"))
    return session(g.model())


def sampled(graph: ort.InferenceSession, logits: np.ndarray, temperature: float, uniform: np.ndarray) -> Any:
    frames = logits.shape[:2]
    feed = {"logits": logits, "temperature": np.array(temperature, np.float32), "uniform": uniform}
    return graph.run(None, {**feed, "given": np.zeros(frames, np.int64), "fixed": np.zeros(frames, bool)})[0]


@pytest.mark.parametrize("codes", [1, 2, 5, 24, 27, 32, 1024])
def test_sampler_is_the_inverse_cdf(codes: int, rng: np.random.Generator) -> None:
    logits = (3 * rng.standard_normal((3, 41, codes))).astype(np.float32)
    uniform = rng.integers(0, 1 << 24, (3, 41)).astype(np.float32) / np.float32(1 << 24)
    temperature = float(np.float32(rng.uniform(0.3, 2)))
    code = sampled(sampler(codes), logits, temperature, uniform)
    scaled = logits.astype(np.float64) / temperature
    weight = np.exp(scaled - scaled.max(-1, keepdims=True))
    cdf = np.cumsum(weight, -1) / weight.sum(-1, keepdims=True)
    want = (cdf <= uniform[..., None]).sum(-1).clip(max=codes - 1)
    clear = np.abs(cdf - uniform[..., None]).min(-1) > 1e-5
    assert clear.mean() > 0.9 or codes == 1
    np.testing.assert_array_equal(code[clear], want[clear])


@pytest.mark.parametrize("codes", [1, 2, 27, 1024])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_sampler_at_the_ends_gives_a_code_that_can_occur(
    codes: int, uniform: float, rng: np.random.Generator
) -> None:
    logits = rng.standard_normal((1, 500, codes)).astype(np.float32)
    logits[..., : codes // 3] = -500  # their probability is 0 in float32
    code = sampled(sampler(codes), logits, 1.0, np.full((1, 500), uniform, np.float32))
    assert code.min() >= codes // 3
    assert code.max() < codes


def test_demo_is_within_its_budget() -> None:
    shape = ACOUSTIC_PRESETS["demo"]
    assert sum(p.numel() for p in seeded(shape).parameters()) <= 4_500_000
    assert build_acoustic(shape).model().ByteSize() < 2_000_000


def test_graph_passes_the_checker() -> None:
    for shape in SHAPES.values():
        weights = {PART: acoustic_weights(seeded(shape))}
        for built in (build_acoustic(shape, logits=True), build_acoustic_prompt(shape)):
            onnx.checker.check_model(inline_weights(built, weights), full_check=True)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"width": 36}, {"kernel": 4}, {"radius": 1}, {"prompt_tokens": 0}, {"levls": 3}]
)
def test_shape_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        AcousticShape(**{**TINY.model_dump(), **wrong})

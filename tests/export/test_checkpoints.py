"""Checkpoints in their real layouts become bundles that speak as their authors' own code does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssm.bundle import open_bundle
from speechssm.bundle.shapes import LMShape
from speechssm.engines.ort import OrtGraph, OrtOptions
from speechssm.errors import ExportError
from speechssm.export.checkpoints import own
from speechssm.export.checkpoints.files import conversion
from speechssm.export.checkpoints.read import read_checkpoint
from speechssm.export.exporter import export_checkpoint
from speechssm.export.models.griffin import Griffin
from speechssm.export.parity.rollout import State, with_logits
from speechssm.export.parts import seeded_model
from speechssm.export.presets import PRESETS
from tests.doubles.checkpoints import golden, huggingface_tensors, save_deepmind, save_huggingface
from tests.doubles.lm import TINY, shaken

TOLERANCE = 1e-4


def bundle_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits (b,t,v) of the bundle's step graph on ONNX Runtime."""
    bundle = open_bundle(folder)
    shape = bundle.manifest.lm.shape
    _, entry = bundle.graph("lm_step")
    rows = len(tokens)
    state: State = {s.name: np.zeros((rows, *s.shape), s.dtype) for s in entry.state}
    settings = {
        "active": np.ones(rows, bool),
        "temperature": np.zeros(rows, np.float32),
        "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32),
        "uniform": np.zeros(rows, np.float32),
    }
    out = []
    with with_logits(folder, entry, shape.vocab) as (path, wider):
        graph = OrtGraph("lm_step", path, wider, OrtOptions(threads=1))
        for t in range(tokens.shape[1]):
            inputs = {
                "token": np.ascontiguousarray(tokens[:, t]),
                **settings,
                **{f"in_{k}": v for k, v in state.items()},
            }
            logits, *new = graph.call(inputs, ["lm_logits", *(f"out_{k}" for k in state)])
            state = dict(zip(state, new, strict=True))
            out.append(logits)
        graph.close()
    return np.stack(out, 1)


@pytest.mark.parametrize("shards", [1, 4])
def test_huggingface_to_bundle(tmp_path: Path, shards: int) -> None:
    _, tokens, logits = golden("huggingface_gqa.npz")
    path = save_huggingface(tmp_path / "hf", shards=shards)
    manifest = export_checkpoint(path, tmp_path / "out", rollout=20, threads=1)
    assert manifest.name == "hf"
    assert not manifest.seeded
    assert not manifest.speaks
    assert manifest.lm.shape.kv_heads == 2
    assert manifest.lm.shape.mlp_width == 56
    assert np.abs(bundle_logits(tmp_path / "out", tokens) - logits).max() < TOLERANCE


def test_deepmind_to_bundle(tmp_path: Path) -> None:
    _, tokens, logits = golden("deepmind_mqa.npz")
    path = save_deepmind(tmp_path / "griffin.safetensors")
    export_checkpoint(path, tmp_path / "out", window=16, rollout=20, threads=1)
    assert np.abs(bundle_logits(tmp_path / "out", tokens) - logits).max() < TOLERANCE


@torch.no_grad()
def test_own_layout_to_bundle(tmp_path: Path, rng: np.random.Generator) -> None:
    model = shaken(TINY, int(rng.integers(1 << 30)))
    path = tmp_path / "voice.safetensors"
    own.write_checkpoint(path, "lm", TINY, model.state_dict(), about="mine", licences=("CC0-1.0",))
    manifest = export_checkpoint(path, tmp_path / "out", rollout=20, threads=1)
    assert (manifest.name, manifest.about, manifest.licences) == ("voice", "mine", ("CC0-1.0",))
    tokens = rng.integers(0, TINY.vocab, (3, 2 * TINY.window + 3))
    wanted = model(torch.from_numpy(tokens))[0].numpy()
    assert np.abs(bundle_logits(tmp_path / "out", tokens) - wanted).max() < TOLERANCE


def test_own_folder_of_parts_makes_a_speaking_bundle(tmp_path: Path) -> None:
    preset = PRESETS["tiny"]
    folder = tmp_path / "voice"
    folder.mkdir()
    for part in ("lm", "tokenizer", "acoustic"):
        shape = getattr(preset, part)
        own.write_checkpoint(
            folder / f"{part}.safetensors", part, shape, seeded_model(part, shape, 4).state_dict()
        )
    codec = seeded_model("codec", preset.codec, 4)  # type: ignore[arg-type]
    own.write_checkpoint(tmp_path / "codec.safetensors", "codec", preset.codec, codec.state_dict())  # type: ignore[arg-type]
    manifest = export_checkpoint(
        folder, tmp_path / "out", parts={"codec": tmp_path / "codec.safetensors"}, rollout=20, threads=1
    )
    assert manifest.speaks
    with pytest.raises(ExportError, match="expected the part acoustic"):
        export_checkpoint(folder, tmp_path / "no", parts={"acoustic": tmp_path / "codec.safetensors"})
    lm = PRESETS["tiny"].lm.model_copy(update={"vocab": 65})
    own.write_checkpoint(folder / "lm.safetensors", "lm", lm, Griffin(lm).state_dict())
    with pytest.raises(ExportError, match="different vocabularies: lm 65, tokenizer 64"):
        export_checkpoint(folder, tmp_path / "no", parts={"codec": tmp_path / "codec.safetensors"})
    assert not (tmp_path / "no").exists()


def test_untied_head(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = huggingface_tensors()
    tensors["lm_head.weight"] = rng.standard_normal((48, 32), np.float32)
    path = save_huggingface(tmp_path / "hf", tensors, {"tie_word_embeddings": False})
    manifest = export_checkpoint(path, tmp_path / "out", rollout=20, threads=1)
    assert not manifest.lm.shape.tied_head
    tokens = rng.integers(0, 48, (2, 9))
    tied = export_checkpoint(
        save_huggingface(tmp_path / "tied"), tmp_path / "tied_out", rollout=20, threads=1
    )
    assert tied.lm.shape.tied_head
    assert (
        np.abs(bundle_logits(tmp_path / "out", tokens) - bundle_logits(tmp_path / "tied_out", tokens)).max()
        > 0.1
    )


def test_a_repeated_tied_head_is_accepted(tmp_path: Path) -> None:
    tensors = huggingface_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert "head" not in read_checkpoint(save_huggingface(tmp_path / "hf", tensors)).sources["lm"]


def test_speech_vocab_is_swapped_in(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save_huggingface(tmp_path / "hf")
    vocab, seed = int(rng.integers(10, 90)), int(rng.integers(1 << 30))
    found = read_checkpoint(path, speech_vocab=vocab, seed=seed, rope="none")
    shape, source = found.shapes["lm"], found.sources["lm"]
    assert isinstance(shape, LMShape)
    assert isinstance(source, dict) or hasattr(source, "keys")
    assert (shape.vocab, shape.rope) == (vocab, "none")
    assert source["embed"].shape == (vocab, 32)  # type: ignore[index]
    assert 0.5 < source["embed"].std() * 32**0.5 < 2  # type: ignore[index]
    again = read_checkpoint(path, speech_vocab=vocab, seed=seed).sources["lm"]
    other = read_checkpoint(path, speech_vocab=vocab, seed=seed + 1).sources["lm"]
    assert np.array_equal(source["embed"], again["embed"])  # type: ignore[index]
    assert not np.array_equal(source["embed"], other["embed"])  # type: ignore[index]
    assert np.array_equal(
        source["layers.1.temporal.lru.decay"],  # type: ignore[index]
        huggingface_tensors()["model.layers.1.temporal_block.rg_lru.recurrent_param"],
    )
    manifest = export_checkpoint(path, tmp_path / "out", speech_vocab=vocab, rollout=20, threads=1)
    assert manifest.lm.shape.vocab == vocab


@pytest.mark.parametrize(
    ("hidden_activation", "ours"), [("silu", "silu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")]
)
def test_activations(tmp_path: Path, hidden_activation: str, ours: str) -> None:
    path = save_huggingface(tmp_path / "hf", config={"hidden_activation": hidden_activation})
    shape = read_checkpoint(path).shapes["lm"]
    assert isinstance(shape, LMShape)
    assert shape.activation == ours


def test_new_style_rope_settings(tmp_path: Path) -> None:
    path = save_huggingface(
        tmp_path / "hf",
        config={"rope_parameters": {"rope_theta": 5e4, "partial_rotary_factor": 0.5, "rope_type": "default"}},
    )
    shape = read_checkpoint(path).shapes["lm"]
    assert isinstance(shape, LMShape)
    assert shape.rope_base == 5e4


def test_saved_by_transformers(tmp_path: Path) -> None:
    """The layout as the library itself writes it today, several KV heads, SiLU, sharded."""
    transformers = pytest.importorskip("transformers")
    config = transformers.RecurrentGemmaConfig(
        num_hidden_layers=4, vocab_size=48, hidden_size=32, intermediate_size=112, num_attention_heads=4,
        num_key_value_heads=2, lru_width=40, attention_window_size=64, hidden_activation="silu",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    export_checkpoint(tmp_path / "hf", tmp_path / "out", rollout=20, threads=1)
    tokens = torch.randint(0, 48, (2, 40))
    with torch.no_grad():
        wanted = model(tokens, use_cache=False).logits.numpy()
    assert np.abs(bundle_logits(tmp_path / "out", tokens.numpy()) - wanted).max() < TOLERANCE


# damage

Damage = Callable[[Path], None]


def _rewrite(change: Callable[[dict[str, np.ndarray]], None]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = huggingface_tensors()
        change(tensors)
        save_huggingface(folder, tensors)

    return damage


def _config(**changes: object) -> Damage:
    return lambda folder: save_huggingface(folder, config=changes) and None


GATE = "model.layers.3.temporal_block.rg_lru.input_gate_weight"


def _drop(t: dict[str, np.ndarray]) -> None:
    del t[GATE]


def _repeat(t: dict[str, np.ndarray]) -> None:
    t["lm_head.weight"] = np.ones((48, 32), np.float32)


def _nan(t: dict[str, np.ndarray]) -> None:
    t[GATE] = t[GATE].copy()
    t[GATE][1, 2, 3] = np.nan


def _truncate(folder: Path) -> None:
    path = save_huggingface(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _lying_length(folder: Path) -> None:
    path = save_huggingface(folder) / "model.safetensors"
    path.write_bytes((1 << 50).to_bytes(8, "little") + path.read_bytes()[8:])


def _lying_offsets(folder: Path) -> None:
    path = save_huggingface(folder) / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"shape":[48,32]', b'"shape":[48,64]', 1))


def _empty(folder: Path) -> None:
    (save_huggingface(folder) / "model.safetensors").write_bytes(b"")


def _pickle(folder: Path) -> None:
    save_huggingface(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")


def _disguised(folder: Path) -> None:
    save_huggingface(folder)
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")


def _lost_shard(folder: Path) -> None:
    save_huggingface(folder, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def _wrong_index(folder: Path) -> None:
    index = save_huggingface(folder, shards=3) / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{GATE}": "model-0000', f'"{GATE}.x": "model-0000'))


def _escaping_index(folder: Path) -> None:
    index = save_huggingface(folder, shards=2) / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of", "../model-00001-of"))


def _no_config(folder: Path) -> None:
    (save_huggingface(folder) / "config.json").unlink()


DAMAGES: list[tuple[str, Damage, str]] = [
    ("missing", _rewrite(_drop), GATE),
    ("extra", _rewrite(lambda t: t.update({"model.layers.9.x": np.zeros(1, np.float32)})), "model.layers.9.x"),
    ("shape", _rewrite(lambda t: t.update({GATE: t[GATE][:3]})), r"has shape \[3, 10, 10\], expected \[4"),
    ("integers", _rewrite(lambda t: t.update({GATE: t[GATE].astype(np.int32)})), f"{GATE} of .* is I32: expected"),
    ("nan", _rewrite(_nan), rf"{GATE} .* holds nan at \(1, 2, 3\)"),
    ("tied head differs", _rewrite(_repeat), "lm_head.weight differs"),
    ("untied without head", _config(tie_word_embeddings=False), "no tensor lm_head.weight"),
    ("activation", _config(hidden_activation="relu"), "hidden_activation 'relu', which is not supported: expected"),
    ("conv width", _config(conv1d_width=3), "conv1d_width 3"),
    ("attention bias", _config(attention_bias=True), "attention_bias true"),
    ("rotary part", _config(partial_rotary_factor=1.0), "partial_rotary_factor 1.0"),
    ("blocks", _config(block_types=["mamba"]), "block_types"),
    ("heads", _config(num_attention_heads=0), "num_attention_heads 0: expected a whole number"),
    ("uneven heads", _config(num_key_value_heads=3), "describes no model.*kv_heads 3"),
    ("fewer layers", _config(num_hidden_layers=4), "model.layers.4"),
    ("other model", _config(model_type="llama"), "model_type 'llama', expected 'recurrent_gemma'"),
    ("truncated", _truncate, "model.safetensors"),
    ("lying length", _lying_length, "header claims"),
    ("lying shape", _lying_offsets, "model.embed_tokens.weight"),
    ("empty", _empty, "only 0 bytes"),
    ("pickle", _pickle, r"pytorch_model.bin is a pickle .* refused: convert it with"),
    ("disguised pickle", _disguised, "is a pickle"),
    ("lost shard", _lost_shard, "names the shard model-00002-of-00003.safetensors"),
    ("wrong index", _wrong_index, f"tensor {GATE}.x is in"),
    ("escaping index", _escaping_index, "plain file names"),
    ("no configuration", _no_config, "no config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damage_is_one_clear_sentence_and_nothing_is_left(
    tmp_path: Path, damage: Damage, message: str
) -> None:
    damage(tmp_path / "hf")
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ExportError, match=f"(?s){message}") as caught:
        export_checkpoint(tmp_path / "hf", place / "out", rollout=4, threads=1)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 350 or "convert it with" in text
    assert list(place.iterdir()) == []


def test_the_conversion_command_converts(tmp_path: Path) -> None:
    """The command a refused pickle is answered with, run as it is printed."""
    parameters = {k: torch.from_numpy(v) for k, v in golden("deepmind_mqa.npz")[0].items()}
    torch.save(parameters, tmp_path / "griffin.pt")
    command = conversion(tmp_path / "griffin.pt")
    code = command.removeprefix('python -c "').removesuffix('"')
    exec(code, {})
    found = read_checkpoint(tmp_path / "griffin.safetensors", window=16)
    assert np.array_equal(found.sources["lm"]["embed"], parameters["embedder.input_embedding"].numpy())  # type: ignore[index]


def test_float16_and_bfloat16_checkpoints_widen(tmp_path: Path, rng: np.random.Generator) -> None:
    from safetensors.torch import save_file

    value = torch.from_numpy(rng.standard_normal((48, 32), np.float32))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensors = {k: torch.from_numpy(v).to(dtype) for k, v in huggingface_tensors().items()}
        tensors["model.embed_tokens.weight"] = value.to(dtype)
        folder = save_huggingface(tmp_path / str(dtype))
        save_file(tensors, folder / "model.safetensors")
        embed = read_checkpoint(folder).sources["lm"]["embed"]  # type: ignore[index]
        assert np.array_equal(embed, value.to(dtype).float().numpy())

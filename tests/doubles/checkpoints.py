"""Small checkpoints in other people's real layouts, made from the golden arrays of their own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parents[1] / "golden"

CONFIG: dict[str, Any] = {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "model_type": "recurrent_gemma",
    "attention_bias": False,
    "attention_window_size": 64,
    "block_types": ["recurrent", "recurrent", "attention"],
    "conv1d_width": 4,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "intermediate_size": 112,
    "logits_soft_cap": 30.0,
    "lru_width": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 48,
}
"""Of ``huggingface_gqa.npz``, as transformers writes it."""


def golden(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Parameters under their author's names, tokens (b,t), logits (b,t,v)."""
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        parameters = {k.removeprefix("param:"): file[k] for k in file.files if k.startswith("param:")}
        return parameters, file["tokens"], file["logits"]


def huggingface_tensors() -> dict[str, np.ndarray]:
    """What ``save_pretrained`` would store: a tied head is left out."""
    tensors = golden("huggingface_gqa.npz")[0]
    tensors.pop("lm_head.weight", None)
    return tensors


def save_huggingface(
    folder: Path,
    tensors: dict[str, np.ndarray] | None = None,
    config: dict[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """A folder as ``save_pretrained`` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = huggingface_tensors() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def save_deepmind(path: Path) -> Path:
    """One file with DeepMind's names."""
    save_file(golden("deepmind_mqa.npz")[0], path)
    return path

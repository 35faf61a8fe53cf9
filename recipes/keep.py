"""Stage ``keep``: the best weights of a part, from the cache into the tree, to be committed."""

from __future__ import annotations

import torch

from . import places

PARTS = ("tokenizer", "codec", "language", "acoustic")


def run(part: str) -> None:
    """Matrices become float16, as the bundle stores them; scales, biases and decays stay float32.

    Raises FileNotFoundError when the cache holds no weights of ``part``.
    """
    folder = places.cache(part)
    if not (folder / "best.safetensors").exists():
        raise FileNotFoundError(f"{folder} holds no best weights: train and judge the part first")
    about = places.read_json(folder / "best.json")
    evaluation = folder / "evaluation.json"
    if evaluation.exists():
        about["evaluation"] = places.read_json(evaluation)
    weights = places.load_tensors(folder / "best.safetensors")
    small = {k: v.to(torch.float16) if v.dim() > 1 else v for k, v in weights.items()}
    places.write_tensors(places.TRAINED / f"{part}.safetensors", small)
    places.write_json(places.TRAINED / f"{part}.json", about)
    print(f"{part}: {sum(v.numel() for v in small.values()) / 1e6:.2f} M parameters of step {about['step']}")

"""Make the golden arrays that Griffin is held against, with two public implementations.

Neither is a dependency of this project. In an environment of its own:

    pip install torch transformers einops jaxtyping sentencepiece
    pip install --no-deps recurrentgemma
    python tests/golden/make_golden.py

Each file holds seeded random parameters under their author's names, tokens (b,t) and logits (b,t,v).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def shake(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter, norms and biases included, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 16
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(noise * (fan_in**-0.5 if parameter.ndim > 1 else 0.3))
            if name.endswith(("a_param", "recurrent_param")):
                parameter.copy_(-4.0 + noise)


def save(name: str, model: torch.nn.Module, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    arrays = {f"param:{k}": v.detach().float().numpy() for k, v in model.state_dict().items()}
    np.savez_compressed(HERE / name, tokens=tokens.numpy(), logits=logits.float().numpy(), **arrays)
    print(name, tuple(logits.shape), f"largest logit {logits.abs().max():.3f}")


def deepmind() -> None:
    """DeepMind's PyTorch code: MQA, RoPE on half of each head, over more than four windows."""
    # Only the PyTorch half is wanted; the package's own __init__ imports JAX.
    package = types.ModuleType("recurrentgemma")
    spec = importlib.util.find_spec("recurrentgemma")
    assert spec is not None
    assert spec.submodule_search_locations
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["recurrentgemma"] = package
    from recurrentgemma import common
    from recurrentgemma.torch.griffin import Griffin

    blocks = tuple(
        common.TemporalBlockType.ATTENTION if i % 3 == 2 else common.TemporalBlockType.RECURRENT
        for i in range(5)
    )
    config = common.GriffinConfig(
        vocab_size=48, width=32, mlp_expanded_width=56, num_heads=4, block_types=blocks,
        embeddings_scale_by_sqrt_dim=True, attention_window_size=16, logits_soft_cap=30.0, lru_width=40,
    )  # fmt: skip
    model = Griffin(config, gradient_checkpointing=False)
    shake(model, 1)
    tokens = torch.randint(0, 48, (2, 70), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # One long forward, then the same tokens again as a prompt and single steps through the ring.
        logits, _ = model(tokens, torch.arange(70)[None].repeat(2, 1))
        _, cache = model(tokens[:, :20], torch.arange(20)[None].repeat(2, 1))
        steps = []
        for i in range(20, 70):
            out, cache = model(tokens[:, i : i + 1], torch.full((2, 1), i), cache)
            steps.append(out[:, 0])
    worst = (torch.stack(steps, 1) - logits[:, 20:]).abs().max()
    assert worst < 1e-4, f"the reference disagrees with itself by {worst}"
    save("deepmind_mqa.npz", model, tokens, logits)


def huggingface() -> None:
    """Hugging Face's RecurrentGemma: two KV heads, below w - 1 tokens, where its window is right."""
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    config = RecurrentGemmaConfig(
        num_hidden_layers=5, vocab_size=48, hidden_size=32, intermediate_size=112, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, lru_width=40, attention_window_size=64, logits_soft_cap=30.0,
        block_types=["recurrent", "recurrent", "attention"],
    )  # fmt: skip
    model = RecurrentGemmaForCausalLM(config).eval()
    shake(model, 3)
    tokens = torch.randint(0, 48, (2, 60), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    save("huggingface_gqa.npz", model, tokens, logits)


if __name__ == "__main__":
    for make in (deepmind, huggingface):
        make()

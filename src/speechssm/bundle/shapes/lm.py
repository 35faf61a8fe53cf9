"""Shape of the semantic language model (Griffin; facts: paper section 3.2, RecurrentGemma)."""

import struct
from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from .base import Shape

Block = Literal["recurrent", "attention"]


class LMShape(Shape):
    """A Griffin language model.

    ``blocks`` lists the temporal block of every layer, in order. The recurrence's gates are
    block-diagonal with ``heads`` blocks of e/h.
    """

    vocab: PositiveInt
    width: PositiveInt
    lru_width: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    window: PositiveInt
    mlp_width: PositiveInt
    blocks: tuple[Block, ...]
    rope: Literal["half", "none"] = "half"
    rope_base: PositiveFloat = 10_000.0
    soft_cap: PositiveFloat | None = 30.0
    scale_embedding: bool = True
    tied_head: bool = True
    activation: Literal["gelu_tanh", "silu", "gelu"] = "gelu_tanh"
    norm_eps: PositiveFloat = 1e-6
    ring: Literal["float32", "float16", "int8"] = "float32"
    """How keys and values of past tokens are kept; ``int8`` has a float32 scale for each slot and head."""
    cache: Literal["ring", "grow"] = "ring"
    """``ring`` keeps the last ``window`` keys; ``grow`` keeps all of them, in blocks of ``window``, as a
    Transformer does."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lru_width % self.heads:
            raise ValueError(f"lru_width {self.lru_width} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.rope == "half" and self.head_dim % 4:
            raise ValueError(f"rope 'half' needs head_dim divisible by 4, not {self.head_dim}")
        if self.cache == "grow" and "recurrent" in self.blocks:
            raise ValueError("cache 'grow' is for models whose every block is attention")
        if not self.blocks:
            raise ValueError("blocks is empty: a model needs at least one layer")
        return self

    @property
    def gate_width(self) -> int:
        """Width of one block of the block-diagonal gates: e/h."""
        return self.lru_width // self.heads

    @property
    def layers(self) -> int:
        """Number of residual blocks."""
        return len(self.blocks)

    @property
    def embedding_scale(self) -> float:
        """sqrt(d) rounded to bfloat16, as the reference has it (50.5 at d = 2560)."""
        if not self.scale_embedding:
            return 1.0
        return _round_to_bfloat16(float(self.width) ** 0.5)

    # costs

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the matrices that every step multiplies with, the output head included."""
        d, e, k = self.width, self.lru_width, self.head_dim
        recurrent = 3 * d * e + 2 * e * self.gate_width
        attention = 2 * d * self.heads * k + 2 * d * self.kv_heads * k
        blocks = sum(recurrent if block == "recurrent" else attention for block in self.blocks)
        return blocks + self.layers * 3 * d * self.mlp_width + self.vocab * d

    @property
    def parameters(self) -> int:
        """All parameters: the matrices, an untied embedding, biases, norms, convolutions and decays."""
        d, e = self.width, self.lru_width
        small = {"recurrent": 2 * e + d + 5 * e + 3 * e, "attention": d}
        vectors = sum(small[block] + 2 * self.mlp_width + d + 2 * d for block in self.blocks) + d
        untied = 0 if self.tied_head else self.vocab * d
        return self.matrix_parameters + untied + vectors

    def step_flops(self, position: int) -> int:
        """Floating-point operations of one token at ``position``: matrices, and attention over its keys."""
        keys = position + 1 if self.cache == "grow" else min(position, self.window) + 1
        attention = 4 * self.heads * self.head_dim * keys
        return 2 * self.matrix_parameters + self.blocks.count("attention") * attention

    def kv_bytes_per_token(self, item_bytes: int = 4) -> int:
        """Bytes of keys and values that one position adds, over all attention layers."""
        return self.blocks.count("attention") * 2 * self.kv_heads * self.head_dim * item_bytes

    @property
    def recurrent_bytes(self) -> int:
        """Bytes of one session's recurrence and convolutions, float32 always, and its position."""
        return self.blocks.count("recurrent") * 4 * 4 * self.lru_width + 8

    def session_bytes(self, tokens: int, item_bytes: int = 4) -> int:
        """Bytes of one session's state after ``tokens``; a growing cache is counted in whole blocks."""
        slots = self.window if self.cache == "ring" else -(-tokens // self.window) * self.window
        return self.recurrent_bytes + slots * self.kv_bytes_per_token(item_bytes)


def griffin_blocks(layers: int) -> tuple[Block, ...]:
    """The fixed pattern recurrent, recurrent, attention over ``layers`` layers."""
    return tuple("attention" if i % 3 == 2 else "recurrent" for i in range(layers))


def _round_to_bfloat16(value: float) -> float:
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    (rounded,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(rounded)

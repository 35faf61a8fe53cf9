"""The acoustic stage as plain PyTorch: SoundStorm (arXiv 2305.09636), speaker-prompted by 3 s in front.

Per frame the embeddings of all q codes (a mask embedding where unknown) and of the aligned semantic token
are added up; a bidirectional conformer with rotary positions runs over them; one head per level scores
that level's codes. Three things differ from the published network, all so that a small model trained on
crops of a few seconds works over whole windows of 30 s:

* A window frame attends to the frames at most ``radius`` away and to the whole prompt. The prompt is
  attended to without positions, since it was spoken at no particular distance from the window.
* The prompt is encoded by itself, by the same layers: it never sees the window, nor do convolutions run
  across the seam, which is a cut in the recording for every window but the first. What it gives is
  therefore the same in every pass and every window of a session.
* The prompt's encoding, averaged over its frames, is added to every window frame: the pooled voice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssm.axes import TOKEN_FRAMES
from speechssm.bundle.shapes import AcousticShape

from .tokenizer import Convolution, FeedForward


@dataclass
class Voice:
    """What the windows of a session take from its prompt (p frames).

    ``keys`` and ``values`` hold (b,h,p,k) per layer, keys without positions; ``pooled`` is (b,d).
    """

    keys: list[Tensor]
    values: list[Tensor]
    pooled: Tensor


class PromptedAttention(nn.Module):
    """Attention of prompt frames to each other, and of window frames to their neighbours and the prompt."""

    def __init__(self, shape: AcousticShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b,f,d) -> queries, scaled, keys and values, each (b,h,f,k)."""
        b, f, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, f, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return q * q.shape[-1] ** -0.5, k, v

    def over_prompt(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt (b,p,d) -> (b,p,d), and the keys and values (b,h,p,k) that windows will read."""
        q, k, v = self.project(x)
        weight = torch.softmax(rotate(q, angles) @ rotate(k, angles).transpose(-1, -2), dim=-1)
        return self.join(weight @ v), k, v

    def over_window(self, x: Tensor, angles: Tensor, near: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Window (b,f,d), where ``near`` (f,f) allows, and the prompt's keys and values -> (b,f,d)."""
        q, k, v = self.project(x)
        local = rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)
        local = local.masked_fill(~near, float("-inf"))
        weight = torch.softmax(torch.cat([q @ keys.transpose(-1, -2), local], dim=-1), dim=-1)
        return self.join(weight @ torch.cat([values, v], dim=2))

    def join(self, y: Tensor) -> Tensor:
        """Heads (b,h,f,k) -> (b,f,d)."""
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class PromptedLayer(nn.Module):
    """Conformer layer: half feed-forward, attention, convolution, half feed-forward, pre-norm.

    ``dropout`` falls on what each module adds, in training only.
    """

    def __init__(self, shape: AcousticShape, dropout: float) -> None:
        super().__init__()
        self.first = FeedForward(shape.width, shape.ff_width)
        self.attention = PromptedAttention(shape)
        self.convolution = Convolution(shape.width, shape.kernel)
        self.second = FeedForward(shape.width, shape.ff_width)
        self.dropout = nn.Dropout(dropout)

    def over_prompt(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt (b,p,d) -> (b,p,d), and its keys and values (b,h,p,k)."""
        x = x + self.dropout(0.5 * self.first(x))
        y, keys, values = self.attention.over_prompt(x, angles)
        return self.after(x + self.dropout(y)), keys, values

    def over_window(self, x: Tensor, angles: Tensor, near: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Window (b,f,d) -> (b,f,d)."""
        x = x + self.dropout(0.5 * self.first(x))
        x = x + self.dropout(self.attention.over_window(x, angles, near, keys, values))
        return self.after(x)

    def after(self, x: Tensor) -> Tensor:
        """What follows attention, alike for prompt and window."""
        x = x + self.dropout(self.convolution(x))
        y: Tensor = x + self.dropout(0.5 * self.second(x))
        return y


class Acoustic(nn.Module):
    """``tokens (b,t), codes (b,q,f), known (b,q,f), level -> logits`` of the window's frames; f = 2t.

    The first ``prompt_tokens`` of t, and their frames, are the speaker prompt.
    """

    angles: Tensor

    def __init__(self, shape: AcousticShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = s = shape
        self.register_buffer("angles", torch.from_numpy(rotary_angles(shape)), persistent=False)
        self.token_embedding = nn.Embedding(s.vocab, s.width)
        self.code_embedding = nn.Parameter(torch.randn(s.levels, s.codes + 1, s.code_width))
        self.code_in = nn.Linear(s.levels * s.code_width, s.width)
        self.layers = nn.ModuleList(PromptedLayer(s, dropout) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)
        self.voice = FeedForward(s.width, s.width)
        self.head = nn.Parameter(torch.randn(s.levels, s.width, s.code_width) * s.width**-0.5)
        self.head_bias = nn.Parameter(torch.zeros(s.levels, s.codes))

    def embed(self, tokens: Tensor, codes: Tensor, known: Tensor) -> Tensor:
        """tokens (b,t), codes (b,q,f), known (b,q,f) -> (b,f,d). Codes that are not known are never read."""
        row = torch.where(known, codes, self.shape.codes)
        level = torch.arange(self.shape.levels, device=codes.device)[:, None]
        # An embedding, not an index: its gradient does not take turns where thousands of frames are masked.
        table = self.code_embedding.flatten(0, 1)
        x = self.code_in(
            F.embedding(row + level * (self.shape.codes + 1), table).permute(0, 2, 1, 3).flatten(2)
        )
        out: Tensor = x + self.token_embedding(tokens).repeat_interleave(TOKEN_FRAMES, dim=1)
        return out

    def listen(self, tokens: Tensor, codes: Tensor) -> Voice:
        """Speaker prompt, tokens (b,75) and codes (b,q,150), -> what windows take from it."""
        x = self.embed(tokens, codes, torch.ones_like(codes, dtype=torch.bool))
        return self._listen(x)

    def _listen(self, x: Tensor) -> Voice:
        angles = self.angles[:, : x.shape[1]]
        keys, values = [], []
        for layer in self.layers:
            assert isinstance(layer, PromptedLayer)
            x, key, value = layer.over_prompt(x, angles)
            keys.append(key)
            values.append(value)
        return Voice(keys, values, self.voice(x.mean(dim=1)))

    def hidden(self, tokens: Tensor, codes: Tensor, known: Tensor, voice: Voice) -> Tensor:
        """Window, tokens (b,t), codes and known (b,q,f), -> (b,f,d), normed: what the heads read."""
        return self._hidden(self.embed(tokens, codes, known), voice)

    def _hidden(self, x: Tensor, voice: Voice) -> Tensor:
        frames = x.shape[1]
        angles = self.angles[:, :frames]
        at = torch.arange(frames, device=x.device)
        radius = frames if self.shape.radius is None else self.shape.radius
        near = (at[:, None] - at).abs() <= radius
        x = x + voice.pooled[:, None]
        for layer, keys, values in zip(self.layers, voice.keys, voice.values, strict=True):
            assert isinstance(layer, PromptedLayer)
            x = layer.over_window(x, angles, near, keys, values)
        y: Tensor = self.norm(x)
        return y

    def logits(self, hidden: Tensor, level: int | Tensor) -> Tensor:
        """hidden (b,f,d), one level or a level per row (b) -> (b,f,c)."""
        table = self.code_embedding[level, : self.shape.codes]
        scores = hidden @ self.head[level] @ table.transpose(-1, -2)
        bias = self.head_bias[level]
        out: Tensor = scores * self.shape.code_width**-0.5 + (bias if bias.dim() == 1 else bias[:, None])
        return out

    def forward(self, tokens: Tensor, codes: Tensor, known: Tensor, level: int | Tensor) -> Tensor:
        """tokens (b,t), codes and known (b,q,f) with the prompt in front -> (b, f - 150, c)."""
        x = self.embed(tokens, codes, known)
        prompt = self.shape.prompt_frames
        return self.logits(self._hidden(x[:, prompt:], self._listen(x[:, :prompt])), level)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the two halves of each head, (b,h,f,k), by cosines and sines (2, f, k/2)."""
    low, high = x.chunk(2, dim=-1)
    cosine, sine = angles.to(x.dtype)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def rotary_angles(shape: AcousticShape) -> np.ndarray:
    """Cosines and sines (2, frames, k/2) of every position, computed in float64."""
    half = shape.head_dim // 2
    turns = np.arange(max(shape.max_frames, shape.prompt_frames))[:, None] * shape.rope_base ** (
        -np.arange(half) / half
    )
    angles: np.ndarray = np.stack([np.cos(turns), np.sin(turns)]).astype(np.float32)
    return angles

"""Training of the residual vector quantizer: k-means start, moving averages, revival of dead codes.

Codebooks follow exponential moving averages of the residuals assigned to them (SoundStream, section
III-C); the encoder gets the decoder's gradient straight through and a commitment loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechssm.export.models.codec import Codec

DECAY = 0.99
DEAD = 0.03
"""A code whose average count per batch falls below this share of the mean is moved to a random residual."""
IDLE = 0.1
"""In k-means with latents at rest, a code with a smaller share of the mean is moved."""
START_ROUNDS = 12
PARTIAL, PARTIAL_AT_REST = 0.2, 0.05
"""Share of rows that are decoded from fewer levels, so that early levels carry most of the speech; and
once codebooks rest."""


def nearest(left: Tensor, book: Tensor) -> Tensor:
    """left (r, latent), book (c, latent) -> index of the nearest code (r)."""
    return (book.square().sum(-1) - 2 * left @ book.T).argmin(-1)


class Trainer:
    """Owns the statistics behind ``model.codebooks``."""

    def __init__(self, model: Codec) -> None:
        self.books = model.codebooks
        self.books.requires_grad_(False)
        self.counts = torch.ones_like(self.books[..., 0])
        self.sums = self.books.detach().clone()

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator, batch: int) -> None:
        """Residual k-means over latents (r, latent), level by level; a step will bring ``batch`` of them."""
        left = latents
        for level, book in enumerate(self.books):
            book.copy_(left[torch.randperm(len(left), generator=generator)[: len(book)].to(left.device)])
            for _ in range(START_ROUNDS):
                index = nearest(left, book)
                counts, sums = self._totals(left, index, len(book))
                book.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), book))
                empty = counts == 0
                book[empty] = left[
                    torch.randperm(len(left), generator=generator)[: int(empty.sum())].to(left.device)
                ]
            index = nearest(left, book)
            counts, _ = self._totals(left, index, len(book))
            self.counts[level].copy_(counts * (batch / len(left)))
            self.sums[level].copy_(book * self.counts[level][:, None])
            left = left - book[index]

    @torch.no_grad()
    def refit(self, latents: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Residual k-means over latents (r, latent) from where the moving averages are.

        Beside moving latents many codes die and are born again at random: at the end of training a first
        level used 576 of its 1024. With latents at rest every code finds work. Codes that live stay near
        their place, so what was learned of them stays nearly true.
        """
        left = latents
        for book in self.books:
            for i in range(rounds):
                counts, sums = self._totals(left, nearest(left, book), len(book))
                book.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), book))
                if i < rounds - 3:
                    idle = counts < IDLE * counts.mean()
                    fresh = torch.randperm(len(left), generator=generator)[: int(idle.sum())]
                    book[idle] = left[fresh.to(left.device)]
            left = left - book[nearest(left, book)]

    @torch.no_grad()
    def expect(self, batch: int) -> None:
        """Statistics as if every code had its even share of ``batch`` latents a step."""
        self.counts.fill_(batch / self.counts.shape[1])
        self.sums.copy_(self.books * self.counts[..., None])

    @torch.no_grad()
    def assign(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """latents (r, latent) -> sums of the first 1..q levels (q, r, latent), codes (q, r). Learns."""
        left, total = latents, torch.zeros_like(latents)
        partial, codes = [], []
        for level, book in enumerate(self.books):
            index = nearest(left, book)
            chosen = book[index]
            counts, sums = self._totals(left, index, len(book))
            self.counts[level].mul_(DECAY).add_(counts, alpha=1 - DECAY)
            self.sums[level].mul_(DECAY).add_(sums, alpha=1 - DECAY)
            share = len(left) / len(book)
            dead = (self.counts[level] < DEAD * share)[:, None]
            fresh = left[torch.randint(len(left), (len(book),), generator=generator).to(left.device)]
            book.copy_(
                torch.where(dead, fresh, self.sums[level] / self.counts[level][:, None].clamp_min(1e-6))
            )
            self.sums[level].copy_(torch.where(dead, fresh * share, self.sums[level]))
            self.counts[level].copy_(torch.where(dead[:, 0], share, self.counts[level]))
            left = left - chosen
            total = total + chosen
            partial.append(total)
            codes.append(index)
        return torch.stack(partial), torch.stack(codes)

    def __call__(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """latents (b, f, latent) -> straight-through sums (b, f, latent), commitment loss, codes (q, b f)."""
        rows, frames, _ = latents.shape
        sums, codes = self.assign(latents.detach().float().flatten(0, 1), generator)
        sums = sums.view(len(self.books), rows, frames, -1)
        chosen = self._cut(sums, generator)
        commitment = (latents.float() - sums[-1]).square().mean()
        return latents + (chosen - latents).detach(), commitment, codes

    @torch.no_grad()
    def look_up(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """latents (b, f, latent) -> sums (b, f, latent), codes (q, b f); nothing is learned."""
        left, total, partial, codes = latents.float().flatten(0, 1), 0.0, [], []
        for book in self.books:
            index = nearest(left, book)
            total = total + book[index]
            left = left - book[index]
            partial.append(total)
            codes.append(index)
        sums = torch.stack(partial).view(len(self.books), *latents.shape)
        return self._cut(sums, generator, PARTIAL_AT_REST), torch.stack(codes)

    def _cut(self, sums: Tensor, generator: torch.Generator, share: float = PARTIAL) -> Tensor:
        """Sums of the first 1..q levels (q, b, f, latent) -> all levels, or fewer in some rows (b, f, latent)."""
        rows = sums.shape[1]
        levels = torch.full((rows,), len(self.books) - 1)
        cut = torch.rand(rows, generator=generator) < share
        levels[cut] = torch.randint(len(self.books), (int(cut.sum()),), generator=generator)
        return sums[levels.to(sums.device), torch.arange(rows, device=sums.device)]

    @staticmethod
    def _totals(left: Tensor, index: Tensor, codes: int) -> tuple[Tensor, Tensor]:
        counts = torch.zeros(codes, device=left.device).index_add_(0, index, torch.ones_like(left[:, 0]))
        sums = torch.zeros(codes, left.shape[1], device=left.device).index_add_(0, index, left)
        return counts, sums

    def tensors(self) -> dict[str, Tensor]:
        """Statistics to save; the codebooks are the model's."""
        return {"counts": self.counts, "sums": self.sums}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the statistics of :meth:`tensors`."""
        self.counts.copy_(tensors["counts"])
        self.sums.copy_(tensors["sums"])

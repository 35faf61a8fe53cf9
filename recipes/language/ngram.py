"""An interpolated Kneser-Ney n-gram over tokens: the yardstick the language model must beat.

Chen and Goodman 1999, with one discount per order, D = n1 / (n1 + 2 n2). N-grams are packed into one
int64 each, counted by sorting, and looked up by bisection: a few million tokens take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class _Order:
    """Counts of one order: packed n-grams, their counts, and per history its total and its types."""

    grams: NDArray[np.int64]
    counts: NDArray[np.float64]
    histories: NDArray[np.int64]
    totals: NDArray[np.float64]
    types: NDArray[np.float64]
    discount: float


class KneserNey:
    """Trained on streams of tokens in 0..vocab-1."""

    def __init__(self, streams: list[NDArray[np.int64]], vocab: int, order: int = 5) -> None:
        if vocab**order >= 2**63:
            raise ValueError(f"{order}-grams of {vocab} tokens do not fit 63 bits: lower the order")
        self.vocab, self.order = vocab, order
        self.orders: list[_Order] = []
        packed = np.concatenate([self._packed(s, order) for s in streams])
        grams, counts = np.unique(packed, return_counts=True)
        for n in range(order, 0, -1):
            self.orders.insert(0, self._order(grams, counts.astype(np.float64)))
            # A lower order counts in how many contexts an n-gram occurs: drop the first token of each type.
            # Streams shorter than n, or their beginnings, are n-grams of the lower orders only.
            shorter = np.concatenate([self._packed(s[:n], n - 1)[:1] for s in streams]) if n > 1 else grams
            grams, counts = np.unique(np.concatenate([grams % vocab ** (n - 1), shorter]), return_counts=True)

    def _packed(self, tokens: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        if len(tokens) < n or n == 0:
            return np.zeros(0, np.int64)
        packed = np.zeros(len(tokens) - n + 1, np.int64)
        for i in range(n):
            packed = packed * self.vocab + tokens[i : len(tokens) - n + 1 + i]
        return packed

    def _order(self, grams: NDArray[np.int64], counts: NDArray[np.float64]) -> _Order:
        once, twice = float((counts == 1).sum()), float((counts == 2).sum())
        discount = once / max(once + 2 * twice, 1.0) if once else 0.5
        histories, at = np.unique(grams // self.vocab, return_inverse=True)
        totals = np.bincount(at, weights=counts)
        return _Order(grams, counts, histories, totals, np.bincount(at).astype(np.float64), discount)

    def probability(self, history: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(token | history): ``history`` (m, order - 1) with -1 where there is none, ``token`` (m)."""
        p = np.full(len(token), 1.0 / self.vocab)
        for n, order in enumerate(self.orders, 1):
            context = history[:, self.order - n :]
            some = (context >= 0).all(1)
            packed = np.zeros(len(token), np.int64)
            for column in context.T:
                packed = packed * self.vocab + np.maximum(column, 0)
            seen, total = _find(order.histories, order.totals, packed)
            _, types = _find(order.histories, order.types, packed)
            _, count = _find(order.grams, order.counts, packed * self.vocab + token)
            use = some & seen
            total = np.where(use, total, 1.0)
            mixed = np.maximum(count - order.discount, 0) / total + order.discount * types / total * p
            p = np.where(use, mixed, p)
        return p

    def loss(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """-ln P of each token but the first (t - 1), in nat."""
        padded = np.concatenate([np.full(self.order - 1, -1, np.int64), tokens])
        history = np.lib.stride_tricks.sliding_window_view(padded[:-1], self.order - 1)
        lost: NDArray[np.float64] = -np.log(self.probability(history, tokens))[1:]
        return lost


def _find(
    keys: NDArray[np.int64], values: NDArray[np.float64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each of ``wanted`` is among the sorted ``keys``, and its value (0 if not)."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[at] == wanted
    return found, np.where(found, values[at], 0.0)

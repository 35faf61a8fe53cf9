"""The Transformer baseline's cache: every key kept, in a tensor whose length the host chooses.

A Transformer here is a Griffin whose every block attends (:mod:`speechssm.export.models.transformer`),
so its graphs are :mod:`.lm`'s own. With a ring (``cache: ring``) the capacity is fixed and the nodes are
Griffin's. With ``cache: grow`` the rings have a free axis s: a row's slot is its position, and the host
sees to it that s exceeds every position, giving more slots a block at a time.
"""

from __future__ import annotations

import numpy as np

from speechssm.bundle.shapes import LMShape

from .builder import GraphBuilder
from .explicit import QDQ_FP8, QDQ_INT8, ExplicitNodes
from .griffin_nodes import Nodes
from .linear_function import linear_nodes
from .quantized import BlockNodes, DynamicNodes, nodes_class


class GrowingNodes(Nodes):
    """Griffin's nodes over a cache (b,s,g,k) whose s is known only when the graph runs."""

    def slots(self, ring: str) -> str:
        """Numbers 0..s-1 of the slots of ``ring``."""
        return self.g.op("Range", self.g.const(np.int64(0)), self._size(ring), self.g.const(np.int64(1)))

    def overflow(self, ring: str, position: str) -> list[str]:
        """NaN for rows whose host forgot to give more slots: their last keys went nowhere."""
        g = self.g
        fits = g.op("LessOrEqual", position, self._size(ring))
        return [g.op("Where", fits, g.const(np.float32(0)), g.const(np.float32(np.nan)))]

    def _size(self, ring: str) -> str:
        return self.g.op("Squeeze", self.g.op("Shape", ring, start=1, end=2))

    def slot_of(self, ring: str, position: str, active: str) -> tuple[str, str]:
        """The slot of ``position`` is its own; one beyond the cache is not written (:meth:`overflow` tells)."""
        g = self.g
        size = self._size(ring)
        last = g.op("Sub", size, g.const(np.int64(1)))
        slot = g.op("Max", g.op("Min", position, last), g.const(np.int64(0)))
        return slot, g.op("And", active, g.op("Less", position, size))

    def ring_and_self(self, weights: str) -> tuple[str, str]:
        """Attention weights (..., s+1) -> those of the cache and that of the token itself."""
        g = self.g
        last, axis = g.const([-1]), g.const([-1])
        end = g.const([np.iinfo(np.int64).max])
        return (
            g.op("Slice", weights, g.const([0]), last, axis),
            g.op("Slice", weights, last, end, axis),
        )


class _GrowingBlockNodes(GrowingNodes, BlockNodes):
    pass


class _GrowingDynamicNodes(GrowingNodes, DynamicNodes):
    pass


class _GrowingExplicitNodes(GrowingNodes, ExplicitNodes):
    pass


_GROWING: dict[type[Nodes], type[Nodes]] = {
    Nodes: GrowingNodes,
    BlockNodes: _GrowingBlockNodes,
    DynamicNodes: _GrowingDynamicNodes,
    ExplicitNodes: _GrowingExplicitNodes,
}


def nodes_of(
    g: GraphBuilder, shape: LMShape, stored: int, *, ring_op: bool = False, linear_op: bool = False
) -> Nodes:
    """The nodes that a shape's cache and a storage type ask for; ``ring_op`` is :attr:`.Nodes.ring_op`.

    ``linear_op`` makes linear layers operators (:mod:`.linear_function`).
    """
    kind = ExplicitNodes if stored in (QDQ_INT8, QDQ_FP8) else nodes_class(stored)
    kind = _GROWING[kind] if shape.cache == "grow" else kind
    return (linear_nodes(kind, stored) if linear_op else kind)(g, shape, stored, ring_op=ring_op)

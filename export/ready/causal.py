"""Causal convolutional networks as graphs that stream exactly.

A network is a list of layers on named values (b, frames, channels) at several rates. In the graph every
product has constant weights on its right and time on its rows, taps are shifted slices of [past | now], and
what a layer has to remember is a state tensor: the same forms as our own codec's graphs, and for the same
reason (:mod:`speechssm.export.graphs.codec`): any chunking gives the same bits on ONNX Runtime CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechssm.bundle.state import StateTensor

from ..graphs.builder import FLOAT, GraphBuilder

_END = np.iinfo(np.int64).max
_TIME = 1
"""The axis of frames."""
POSITION = "position"
"""State of a late network: codec frames so far."""
SNAKE_EPS = 1e-9


@dataclass(frozen=True)
class Layer:
    """One layer: reads ``inputs``, makes ``output``.

    ========== ============================================ =================================
    kind       weight                                       meaning
    ========== ============================================ =================================
    conv       (out, taps, in/groups)                       ``stride``, ``dilation``, ``groups``; sees the past only
    depthwise  (taps, channels)                             ``dilation``; sees the past only
    transpose  (out, taps, in)                              ``stride`` divides taps; overlaps are carried
    leaky      \\                                           ``alpha`` below zero
    snake      (channels)                                   x + sin(w x)^2 / w (arXiv 2006.08195)
    tanh       \\
    delay      \\                                           its input ``frames`` later
    add        \\                                           of two values
    split      \\                                           channels ``begin`` to ``end``
    join       \\                                           channels of all inputs
    ========== ============================================ =================================
    """

    kind: Literal["conv", "depthwise", "transpose", "leaky", "snake", "tanh", "delay", "add", "split", "join"]
    inputs: tuple[str, ...]
    output: str
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    alpha: float = 0.0
    begin: int = 0
    end: int = 0
    frames: int = 0
    rate: int = 0
    """Values of the input in a codec frame; told where ``late`` is."""
    late: int = 0
    """How many values the input lies behind the codes: those before are read as 0, as padding would be."""

    @property
    def context(self) -> int:
        """Past frames that a convolution reads beside its input: (taps - 1) dilation + 1 - stride."""
        assert self.weight is not None
        taps = len(self.weight) if self.kind == "depthwise" else self.weight.shape[1]
        return (taps - 1) * self.dilation + 1 - self.stride


@dataclass(frozen=True)
class Network:
    """Layers in order, from the value ``input`` (``channels`` wide) to ``output``."""

    layers: tuple[Layer, ...]
    input: str
    output: str
    channels: int

    def widths(self) -> dict[str, int]:
        """Channels of every value."""
        found = {self.input: self.channels}
        for layer in self.layers:
            first = found[layer.inputs[0]]
            if layer.kind in ("conv", "transpose"):
                assert layer.weight is not None
                first = layer.weight.shape[0]
            elif layer.kind == "split":
                first = layer.end - layer.begin
            elif layer.kind == "join":
                first = sum(found[name] for name in layer.inputs)
            found[layer.output] = first
        return found

    def memories(self) -> Iterator[tuple[Layer, StateTensor]]:
        """Layers that carry something from call to call, and its schema without the row axis."""
        widths = self.widths()
        for layer in self.layers:
            if layer.kind in ("conv", "depthwise") and layer.context > 0:
                shape = (layer.context, widths[layer.inputs[0]])
                yield layer, StateTensor(name=f"{layer.output}_conv", kind="conv", shape=shape)
            elif layer.kind == "delay":
                delay = (layer.frames, widths[layer.inputs[0]])
                yield layer, StateTensor(name=f"{layer.output}_past", kind="conv", shape=delay)
            elif layer.kind == "transpose":
                assert layer.weight is not None
                if ahead := layer.weight.shape[1] - layer.stride:
                    tail = (ahead, layer.weight.shape[0])
                    yield layer, StateTensor(name=f"{layer.output}_tail", kind="tail", shape=tail)

    @property
    def is_late(self) -> bool:
        """True when a layer has to know how far the stream is."""
        return any(layer.late for layer in self.layers)

    def state(self) -> tuple[StateTensor, ...]:
        """State schema of the streaming graph; a late network counts the frames so far."""
        counted = StateTensor(name=POSITION, kind="position", shape=(), dtype="int64")
        return (*([counted] if self.is_late else []), *(memory for _, memory in self.memories()))

    def weights(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays by weight name, laid out as the graph multiplies with them: (taps in/groups, out/groups)."""
        made: dict[str, np.ndarray] = {}
        for layer in self.layers:
            if layer.weight is None:
                continue
            for name, array in _laid_out(layer):
                made[f"{prefix}{layer.output}{name}"] = np.ascontiguousarray(array, np.float32)
        return made


def _laid_out(layer: Layer) -> Iterator[tuple[str, np.ndarray]]:
    assert layer.weight is not None
    if layer.kind == "snake":
        yield "_w", layer.weight
        yield "_v", 1 / (layer.weight + SNAKE_EPS)
    elif layer.kind == "depthwise":
        yield "_taps", layer.weight
    elif layer.kind == "conv":
        for i, group in enumerate(np.split(layer.weight, layer.groups)):
            yield f"_w{i}", group.reshape(len(group), -1).T
    else:
        out, taps, inputs = layer.weight.shape
        yield "_w0", layer.weight.transpose(2, 1, 0).reshape(inputs, taps * out)
    if layer.bias is not None:
        yield "_b", layer.bias


class CausalNodes:
    """Emits a network that streams into ``g``; weights are those of ``part`` with names under ``prefix``."""

    def __init__(
        self, g: GraphBuilder, network: Network, part: str, prefix: str, stored: int = FLOAT
    ) -> None:
        self.g, self.network, self.part, self.prefix, self.stored = g, network, part, prefix, stored
        self._position = ""
        self._sizes = {name: array.shape for name, array in network.weights(prefix).items()}

    def run(self, x: str, before: Mapping[str, str] | None) -> tuple[str, dict[str, str]]:
        """x (b, frames, channels) -> the output, and what to carry by state name.

        ``before`` holds the carried values by state name; None starts from silence and carries nothing.
        """
        values, after = {self.network.input: x}, {}
        g = self.g
        if self.network.is_late and before is not None:
            size = g.op("Squeeze", g.op("Slice", g.op("Shape", x), g.const([1]), g.const([2])))
            after[POSITION] = g.op("Add", before[POSITION], size)
            self._position = g.op("Unsqueeze", before[POSITION], g.const([1, 2]))
        memories = {layer.output: memory for layer, memory in self.network.memories()}
        for layer in self.network.layers:
            memory = memories.get(layer.output)
            past = before[memory.name] if before is not None and memory is not None else None
            with self.g.scope(layer.output):
                made, carried = self._layer(layer, [values[name] for name in layer.inputs], memory, past)
            values[layer.output] = made
            if memory is not None and before is not None:
                after[memory.name] = carried
        return values[self.network.output], after

    def _layer(
        self, layer: Layer, inputs: list[str], memory: StateTensor | None, past: str | None
    ) -> tuple[str, str]:
        g, x = self.g, inputs[0]
        if layer.late and self._position:
            x = self._from_the_start(layer, x)
        if layer.kind == "tanh":
            return g.op("Tanh", x), ""
        if layer.kind == "leaky":
            return g.op("LeakyRelu", x, alpha=layer.alpha), ""
        if layer.kind == "snake":
            wave = g.op("Sin", g.op("Mul", x, self._weight(layer, "_w")))
            return g.op("Add", x, g.op("Mul", g.op("Mul", wave, wave), self._weight(layer, "_v"))), ""
        if layer.kind == "delay":
            if past is None:
                return x, ""
            seen = g.op("Concat", past, x, axis=_TIME)
            return self._slice(seen, 0, -layer.frames), self._slice(seen, -layer.frames, _END)
        if layer.kind == "add":
            return g.op("Add", *inputs), ""
        if layer.kind == "split":
            return self._slice(x, layer.begin, layer.end, axis=2), ""
        if layer.kind == "join":
            return g.op("Concat", *inputs, axis=2), ""
        if layer.kind == "transpose":
            return self._transpose(layer, x, past)
        seen = x
        if memory is not None:
            seen = self._padded(layer, x) if past is None else g.op("Concat", past, x, axis=_TIME)
        made = self._depthwise(layer, seen) if layer.kind == "depthwise" else self._conv(layer, seen)
        carried = self._slice(seen, -memory.shape[0], _END) if memory is not None else ""
        return self._plus_bias(layer, made), carried

    def _padded(self, layer: Layer, x: str) -> str:
        """x behind the silence that a stream begins with."""
        return self.g.op("Pad", x, self.g.const([0, layer.context, 0, 0, 0, 0]))

    def _from_the_start(self, layer: Layer, x: str) -> str:
        """x with zeros where it lies before the stream's first code."""
        g = self.g
        count = g.op("Squeeze", g.op("Slice", g.op("Shape", x), g.const([1]), g.const([2])))
        places = g.op("Range", g.const(np.int64(0)), count, g.const(np.int64(1)))
        past = g.op("Mul", self._position, g.const(np.int64(layer.rate)))
        index = g.op("Add", past, g.op("Unsqueeze", places, g.const([1])))
        inside = g.op("GreaterOrEqual", index, g.const(np.int64(layer.late)))
        return g.op("Where", inside, x, g.const(np.float32(0)))

    def _conv(self, layer: Layer, seen: str) -> str:
        g = self.g
        assert layer.weight is not None
        _, taps, per_group = layer.weight.shape
        parts = []
        for i in range(layer.groups):
            x = seen
            if layer.groups > 1:
                x = self._slice(seen, i * per_group, (i + 1) * per_group, axis=2)
            frames = self._frames(layer, x, taps, per_group)
            parts.append(g.op("MatMul", frames, self._weight(layer, f"_w{i}")))
        return g.op("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]

    def _frames(self, layer: Layer, x: str, taps: int, width: int) -> str:
        """[past | now] (b, m, c) -> what each output frame sees, (b, frames, taps c)."""
        g, stride, dilation = self.g, layer.stride, layer.dilation
        if stride > 1 and dilation == 1 and taps % stride == 0:
            # Blocks of one stride: taps/stride shifted views instead of one a tap.
            x = g.op("Reshape", x, g.const([0, -1, stride * width]))
            taps, stride = taps // stride, 1
        views = []
        for j in range(taps):
            behind = (taps - 1 - j) * dilation
            views.append(self._slice(x, j * dilation, -behind if behind else _END, step=stride))
        return g.op("Concat", *views, axis=2) if taps > 1 else views[0]

    def _depthwise(self, layer: Layer, seen: str) -> str:
        g = self.g
        assert layer.weight is not None
        taps, count, made = self._weight(layer, "_taps"), len(layer.weight), ""
        for j in range(count):
            behind = (count - 1 - j) * layer.dilation
            view = self._slice(seen, j * layer.dilation, -behind if behind else _END)
            term = g.op("Mul", view, g.op("Gather", taps, g.const(j)))
            made = g.op("Add", made, term) if j else term
        return made

    def _transpose(self, layer: Layer, x: str, past: str | None) -> tuple[str, str]:
        """Overlap-add: the sum of a block is built oldest frame first, so its partial sums are the carried tail."""
        g = self.g
        assert layer.weight is not None
        out, taps, _ = layer.weight.shape
        hops, block = taps // layer.stride, layer.stride * out
        waves = g.op("MatMul", x, self._weight(layer, "_w0"))
        assert past is not None, "overlaps are carried: only a streaming graph has transposed convolutions"
        pending = g.op("Reshape", past, g.const([0, hops - 1, block])) if hops > 1 else ""
        total, rest = "", list[str]()
        for j in reversed(range(hops)):
            part = self._slice(waves, j * block, (j + 1) * block, axis=2)
            total = g.op("Add", self._slice(total, 0, -1), part) if total else part
            if j:
                total = g.op("Concat", self._slice(pending, j - 1, j), total, axis=_TIME)
                rest.insert(0, self._slice(total, -1, _END))
        made = self._plus_bias(layer, g.op("Reshape", total, g.const([0, -1, out])))
        if not rest:
            return made, ""
        carried = g.op("Concat", *rest, axis=_TIME) if len(rest) > 1 else rest[0]
        return made, g.op("Reshape", carried, g.const([0, taps - layer.stride, out]))

    def _plus_bias(self, layer: Layer, x: str) -> str:
        return x if layer.bias is None else self.g.op("Add", x, self._weight(layer, "_b"))

    def _weight(self, layer: Layer, kind: str) -> str:
        name = f"{self.prefix}{layer.output}{kind}"
        return self.g.weight(self.part, name, self._sizes[name], self.stored)

    def _slice(self, x: str, start: int, stop: int, *, axis: int = _TIME, step: int = 1) -> str:
        g = self.g
        where = [g.const([start]), g.const([stop]), g.const([axis])]
        return g.op("Slice", x, *where, *([g.const([step])] if step > 1 else []))

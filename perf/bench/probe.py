"""A clock on every graph of a bundle: how long the engine ran, how often, and what was slept on purpose.

What a run took and no engine did is the host's: so time is attributed by what ran, not by what the runtime
says of itself. A delay makes every call of one graph longer by a known time, which has to show in that
graph's stage and in no other.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from speechssm.engines.protocol import Array, Bindings, Graph

STAGES: dict[str, str] = {
    "tokenizer": "tokenize",
    "lm_chunk": "LM prefill",
    "lm_step": "LM",
    "acoustic_prompt": "acoustic prompt",
    "acoustic": "acoustic",
    "codec_encode": "codec encode",
    "codec_decode": "codec",
}
"""Stage of each graph."""


class Probe:
    """Gives the graphs of ``inner``, timed. Thread-safe."""

    def __init__(self, inner: Callable[[str], Graph], delay_s: Mapping[str, float] | None = None) -> None:
        self._inner = inner
        self._graphs: dict[str, Graph] = {}
        self._lock = threading.Lock()
        self.delay_s: dict[str, float] = dict(delay_s or {})
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def __call__(self, name: str) -> Graph:
        """The graph called ``name`` in the manifest, behind the clock."""
        with self._lock:
            if name not in self._graphs:
                self._graphs[name] = _Timed(self._inner(name), self)
            return self._graphs[name]

    def add(self, name: str, started: float) -> None:
        """A call of graph ``name`` that began at ``started``."""
        if name in self.delay_s:
            time.sleep(self.delay_s[name])
        took = time.perf_counter() - started
        with self._lock:
            self.seconds[name] += took
            self.calls[name] += 1

    def mark(self) -> Mark:
        """Now, to be compared with later."""
        with self._lock:
            return Mark(time.perf_counter(), dict(self.seconds), dict(self.calls))

    def since(self, mark: Mark) -> dict[str, float]:
        """Seconds by stage since ``mark``; ``host`` is what no engine did, with one caller at a time."""
        now = self.mark()
        found = {stage: now.seconds.get(g, 0.0) - mark.seconds.get(g, 0.0) for g, stage in STAGES.items()}
        return found | {"host": max(0.0, now.at - mark.at - sum(found.values()))}

    def calls_since(self, mark: Mark) -> dict[str, int]:
        """Calls by graph since ``mark``."""
        now = self.mark()
        return {name: count - mark.calls.get(name, 0) for name, count in now.calls.items()}


@dataclass(frozen=True)
class Mark:
    """A moment, and what had run by then."""

    at: float
    seconds: Mapping[str, float]
    calls: Mapping[str, int]


class _Timed:
    """A graph that tells the probe how long each run took."""

    def __init__(self, inner: Graph, probe: Probe) -> None:
        self._inner = inner
        self._probe = probe

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def provider(self) -> str:
        return self._inner.provider

    @property
    def aliased(self) -> frozenset[str]:
        return self._inner.aliased

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        return self._inner.zeros(shape, dtype)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bindings:
        return self._inner.bind(inputs, outputs)

    def run(self, bindings: Bindings) -> None:
        started = time.perf_counter()
        self._inner.run(bindings)
        self._probe.add(self._inner.name, started)

    def call(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        started = time.perf_counter()
        results = self._inner.call(inputs, outputs)
        self._probe.add(self._inner.name, started)
        return results

    def close(self) -> None:
        self._inner.close()

"""Batches made ahead of the step that needs them, in order, by a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], start: int, stop: int, threads: int) -> Iterator[T]:
    """``make(start), ..., make(stop - 1)``; with ``threads`` > 0 up to twice as many are under way at once.

    A batch depends on its number alone, so the order of making never changes what is trained on.
    """
    if threads == 0:
        yield from map(make, range(start, stop))
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        following = start
        try:
            while following < stop or waiting:
                while following < stop and len(waiting) < 2 * threads:
                    waiting.append(pool.submit(make, following))
                    following += 1
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

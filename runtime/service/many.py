"""Many prompts through one service: as many at a time as it takes, each reader served as its audio comes."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from speechssm.errors import SettingsError, SpeechSSMError

from .failure import failure_of, raised_of
from .limits import ServiceLimits
from .outlet import End
from .service import Service
from .ticket import Ticket

if TYPE_CHECKING:
    from ..model import Model, Recording, Speech

TOGETHER = 16
"""Sessions at a time: at the demo's shape a step of 16 rows costs twice one of a single row."""


@dataclass(frozen=True)
class Request:
    """One prompt and the options of :meth:`Service.submit` for it."""

    number: int
    prompt: Recording
    options: dict[str, Any] = field(default_factory=dict)


Take = Callable[[Request, Ticket | None, np.ndarray | End], None]
"""Called with each piece of audio and with the end; the ticket is None when the request was refused."""


def run_many(service: Service, requests: Iterable[Request], take: Take, together: int = TOGETHER) -> None:
    """Put ``requests`` through ``service``, ``together`` at a time, and hand on what comes.

    ``take`` is called in this thread, with exactly one end for each request. What it raises ends the run
    and cancels what is under way.
    """
    changed: queue.SimpleQueue[int] = queue.SimpleQueue()
    active: dict[int, tuple[Request, Ticket]] = {}
    waiting = iter(requests)
    more = True
    try:
        while True:
            while more and len(active) < together:
                request = next(waiting, None)
                if request is None:
                    more = False
                    break
                try:
                    ticket = service.submit(request.prompt, **request.options)
                except (SpeechSSMError, OSError) as error:
                    take(request, None, failure_of(error))
                    continue
                active[request.number] = (request, ticket)
                ticket.notify(lambda number=request.number: changed.put(number))  # type: ignore[misc]
                changed.put(request.number)
            if not active:
                return
            number = changed.get()
            if number not in active:
                continue
            request, ticket = active[number]
            while (got := ticket.take(0)) is not None:
                if isinstance(got, End):
                    del active[number]
                take(request, ticket, got)
                if isinstance(got, End):
                    break
    finally:
        for _, ticket in active.values():
            ticket.cancel()


def generate_many(
    model: Model,
    prompts: Iterable[Recording],
    *,
    seconds: float,
    seeds: Iterable[int] | None = None,
    together: int = TOGETHER,
    limits: ServiceLimits | None = None,
    **options: Any,
) -> Iterator[Speech]:
    """See :meth:`Model.generate_many`."""
    from ..model import Speech

    prompts = list(prompts)
    chosen = [None] * len(prompts) if seeds is None else list(seeds)
    if len(chosen) != len(prompts):
        raise SettingsError(f"there are {len(chosen)} seeds for {len(prompts)} prompts: give one for each")
    requests = [
        Request(i, prompt, {"seconds": seconds, "seed": seed, **options})
        for i, (prompt, seed) in enumerate(zip(prompts, chosen, strict=True))
    ]
    pieces: dict[int, list[np.ndarray]] = {request.number: [] for request in requests}
    done: dict[int, Speech] = {}

    def take(request: Request, ticket: Ticket | None, got: np.ndarray | End) -> None:
        if not isinstance(got, End):
            pieces[request.number].append(got)
        elif got.kind == "failed" or ticket is None:
            raise raised_of(got)
        else:
            audio = np.concatenate(pieces.pop(request.number))
            done[request.number] = Speech(audio, ticket.seed, ticket.stats)

    with Service(model, limits or ServiceLimits(sessions=max(1, together), rows=max(1, together))) as service:
        run_many(service, requests, take, together)
    for request in requests:
        yield done.pop(request.number)

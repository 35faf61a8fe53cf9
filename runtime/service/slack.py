"""When a listener runs dry, and who must be served first.

A real-time reader hears one second a second from its first audio on. So its playback position is known
without asking: it runs dry at ``first audio + seconds given out``. The service compares that with the
work still to do; an offline job never runs dry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from speechssm.axes import SAMPLE_RATE_HZ


@dataclass
class Playback:
    """Where one listener is. Times are seconds on the service's clock.

    ``due`` until the first audio is when it should be there; after it the listener's own clock runs.
    """

    due: float
    playing_since: float | None = None
    given: int = 0
    """Samples given out since ``playing_since``."""
    underruns: int = 0
    stalled_s: float = 0.0

    def dry_at(self, more: int = 0) -> float:
        """When the listener runs dry if ``more`` samples were given out at once."""
        if self.playing_since is None:
            return self.due
        return self.playing_since + (self.given + more) / SAMPLE_RATE_HZ

    def give(self, samples: int, now: float) -> float:
        """Count a piece given out; how long the listener had been dry (0 when in time)."""
        late = 0.0
        if self.playing_since is None:
            self.playing_since = now
        elif math.isfinite(self.playing_since) and now > self.dry_at():
            late = now - self.dry_at()
            self.underruns += 1
            self.stalled_s += late
            # The listener waited: its clock starts anew with this piece.
            self.playing_since += late
        self.given += samples
        return late


def offline() -> Playback:
    """A reader that never runs dry."""
    return Playback(math.inf, math.inf)


def slack(due: float, cost_s: float, now: float) -> float:
    """Seconds that can be spent on others first; negative when it is too late already."""
    return due - cost_s - now


def is_urgent(slack_s: float, others_s: float) -> bool:
    """Whether a listener would run dry if all the others' work went first."""
    return slack_s < others_s

"""How long units of work take: moving averages, so that slack is judged by what this machine does."""

from __future__ import annotations

WEIGHT = 0.1
"""Of the newest measurement."""


class Costs:
    """Seconds of one step, and of one row of an acoustic pass by its bucket. Unknown ones count as nothing."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self.row_s: dict[int, float] = {}

    def stepped(self, seconds: float) -> None:
        """Count one step of the language model."""
        self.step_s = _blend(self.step_s, seconds)

    def passed(self, bucket: int, rows: int, seconds: float) -> None:
        """Count one acoustic pass over ``rows`` windows of ``bucket`` tokens."""
        self.row_s[bucket] = _blend(self.row_s.get(bucket, 0.0), seconds / rows)

    def ahead_of_codes(self, missing: int, bucket: int, passes: int) -> float:
        """Seconds until a session has its next codes: its missing steps, then its passes."""
        return missing * self.step_s + passes * self.row_s.get(bucket, 0.0)


def _blend(old: float, new: float) -> float:
    return new if old == 0.0 else old + WEIGHT * (new - old)

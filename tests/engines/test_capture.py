"""The first captured step: what is compared bit for bit, and what has no bits to compare (S7)."""

from __future__ import annotations

import numpy as np
import pytest

from speechssm.engines.capture import first_step


class Step:
    """A step in place: state += 1, a token, and a sum that no two runs give alike where it is ``unsteady``."""

    def __init__(
        self, *, unsteady: bool, replay_adds: float = 0.0, token: int = 7, moved: float = 1.0
    ) -> None:
        self.arrays = {
            "state": np.full(5, 2.0, np.float32),
            "token": np.zeros(2, np.int64),
            "sum": np.zeros(2, np.float32),
        }
        self.unsteady, self.replay_adds, self.token, self.moved, self.runs = (
            unsteady,
            replay_adds,
            token,
            moved,
            0,
        )

    def eager(self) -> None:
        self.runs += 1
        self.arrays["state"] += 1
        self.arrays["token"][:] = 7
        self.arrays["sum"][:] = 3 + 1e-6 * self.runs * self.unsteady

    def replay(self) -> None:
        self.eager()
        self.arrays["state"] += np.float32(self.moved - 1)
        self.arrays["token"][:] = self.token
        self.arrays["sum"] += np.float32(self.replay_adds)

    def first(self) -> str | None:
        inside = {"state": self.arrays["state"]}
        return first_step("it", self.eager, lambda: None, self.replay, self.arrays, inside)


def test_s7_a_sum_in_no_fixed_order_does_not_forbid_capture() -> None:
    step = Step(unsteady=True)
    assert step.first() is None
    assert (step.arrays["state"] == 3).all(), "whatever was run, one step was made"
    assert (step.arrays["sum"] == np.float32(3 + 1e-6)).all(), "the first eager run's"


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (Step(unsteady=False, replay_adds=1e-6), "sum"),
        (Step(unsteady=True, replay_adds=0.1), "sum"),
        (Step(unsteady=True, token=8), "token"),
        (Step(unsteady=True, moved=1.0001), "state"),
    ],
    ids=["steady in eager runs", "far off", "another token", "another state"],
)
def test_s7_other_differences_forbid_it(step: Step, named: str) -> None:
    problem = step.first()
    assert problem is not None
    assert named in problem
    assert (step.arrays["state"] == 3).all()
    assert (step.arrays["token"] == 7).all()

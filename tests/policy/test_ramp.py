"""Never all at once, and never later than the ramp says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.ramp import Ramp


def _starts(ramp: Ramp, moments: list[float]) -> list[float]:
    """As the pool does it: as many as may, at each moment."""
    started = []
    for now in moments:
        for _ in range(30):
            if ramp.wait_s(now) > 0:
                break
            ramp = ramp.after_start(now)
            started.append(now)
    return started


def test_the_first_two_at_once_then_one_a_second() -> None:
    ramp = Ramp(at_once=2, every_s=1.0)
    assert _starts(ramp, [tenth / 10 for tenth in range(100, 160)]) == [10.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]


def test_after_a_pause_two_are_at_once_again() -> None:
    assert _starts(Ramp(at_once=2, every_s=1.0), [5.0, 60.0]) == [5.0, 5.0, 60.0, 60.0]


def test_without_a_ramp_all_start() -> None:
    assert len(_starts(Ramp(at_once=2, every_s=0.0), [5.0])) == 30


@given(st.lists(st.floats(0, 3), max_size=40), st.integers(1, 5), st.floats(0.01, 5))
def test_in_no_stretch_of_time_do_more_start_than_may(steps: list[float], at_once: int, every_s: float) -> None:
    moments = [sum(steps[: number + 1]) for number in range(len(steps))]
    started = _starts(Ramp(at_once=at_once, every_s=every_s), moments)
    for first, begin in enumerate(started):
        for last in range(first, len(started)):
            assert last - first + 1 <= at_once + (started[last] - begin) / every_s + 1e-6


@given(st.integers(1, 5), st.floats(0.01, 5), st.floats(0, 1e6))
def test_nobody_waits_longer_than_the_pause(at_once: int, every_s: float, now: float) -> None:
    ramp = Ramp(at_once=at_once, every_s=every_s)
    while ramp.wait_s(now) <= 0:
        ramp = ramp.after_start(now)
    assert ramp.wait_s(now) <= every_s + 1e-6

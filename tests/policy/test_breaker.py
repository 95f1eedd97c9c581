from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    HEALTHY,
    LONGEST_PAUSE_S,
    RoleHealth,
    after_failure,
)


def _fail(count: int, *, start: float = 0.0) -> RoleHealth:
    health = HEALTHY
    for number in range(count):
        health = after_failure(health, f"t{number}", "529 overloaded", start + number)
    return health


def test_distinct_tasks_open_it_and_one_stubborn_task_does_not() -> None:
    stubborn = HEALTHY
    for now in range(20):
        stubborn = after_failure(stubborn, "t", "exit 1", float(now))
    assert not stubborn.is_open
    assert not _fail(FAILURES_TO_OPEN - 1).is_open
    assert _fail(FAILURES_TO_OPEN).is_open


def test_it_says_why_and_lets_a_probe_through_after_the_pause() -> None:
    health = _fail(FAILURES_TO_OPEN)
    assert (
        health.refusal("x", health.until - 1) == "role x is paused: its last 5 tasks failed in a row (529 overloaded)"
    )
    assert health.refusal("x", health.until) == ""


@given(st.lists(st.floats(0, 5000), max_size=30))
def test_pauses_are_bounded_and_only_failed_probes_lengthen_them(steps: list[float]) -> None:
    health, now = _fail(FAILURES_TO_OPEN), float(FAILURES_TO_OPEN)
    for step in steps:
        now += step
        probe, before = now >= health.until, health.pause_s
        health = after_failure(health, "t0", "again", now)
        assert FIRST_PAUSE_S <= health.pause_s <= LONGEST_PAUSE_S
        assert (health.pause_s > before) == (probe and before < LONGEST_PAUSE_S)
        assert health.refusal("x", now) != "" or not probe
    assert health.is_hopeless == (health.probes >= 2)

"""A role that is ill is paused and probed; one that says what it lacks is paused at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    HEALTHY,
    LONGEST_LIMIT_S,
    LONGEST_PAUSE_S,
    Cause,
    RoleHealth,
    after_failure,
    after_limit,
    after_login,
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


def test_a_missing_login_closes_the_role_at_the_first_and_is_probed() -> None:
    health = after_login(HEALTHY, "not logged in: run `claude login`", 100.0)
    assert health.refusal("claude", 101.0) == "role claude is paused: not logged in: run `claude login`"
    assert after_login(health, "not logged in", 110.0) == health  # another one that had been started before
    probed = after_login(health, "still not logged in", health.until)
    assert (probed.pause_s, probed.probes) == (2 * FIRST_PAUSE_S, 1)
    assert after_login(probed, "still not logged in", probed.until).is_hopeless


def test_a_limit_pauses_until_it_is_reset_and_no_longer() -> None:
    health = after_limit(HEALTHY, "usage limit, resets at 14:00", 0.0, 3600.0)
    assert health.refusal("claude", 3599.0) == "role claude is paused: usage limit, resets at 14:00"
    assert health.refusal("claude", 3610.0) == ""
    assert not health.is_hopeless
    later = after_limit(health, "usage limit, resets at 15:00", 10.0, 7200.0)
    assert later.until > health.until
    assert after_limit(later, "usage limit, resets at 14:00", 20.0, 3580.0) == later


def test_a_limit_that_names_no_reset_is_probed_ever_more_rarely() -> None:
    health, now = after_limit(HEALTHY, "usage limit", 0.0, 0.0), 0.0
    for _ in range(10):
        assert after_limit(health, "usage limit", health.until - 1, 0.0) == health
        now = health.until
        health = after_limit(health, "usage limit", now, 0.0)
    assert health.pause_s == LONGEST_PAUSE_S


_HEALTH = st.one_of(
    st.just(HEALTHY),
    st.floats(0, 1e6).map(lambda wait_s: after_limit(HEALTHY, "limit", 1000.0, wait_s)),
    st.just(after_login(HEALTHY, "login", 1000.0)),
    st.just(_fail(FAILURES_TO_OPEN, start=900.0)),
    st.just(_fail(2, start=900.0)),
)


@given(_HEALTH, st.floats(0, 5e4), st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_it_outlives_a_restart_whatever_the_clocks_did(
    health: RoleHealth, later: float, step: float, booted: float
) -> None:
    """``step`` is what the wall clock was set by, ``booted`` the monotonic clock of the new boot."""
    now, wall = 1000.0 + later, 1.7e9 + later
    data = json.loads(json.dumps(health.to_json(now=now, wall=wall)))
    heir = RoleHealth.from_json(data, now=booted, wall=wall + step)
    left, before = heir.until - booted, max(health.until - now, 0.0)
    assert (heir.cause, heir.failed, heir.last, heir.probes) == (
        health.cause,
        health.failed,
        health.last,
        health.probes,
    )
    assert heir.is_open == health.is_open
    assert 0 <= left <= LONGEST_LIMIT_S + 10
    if health.is_open and abs(step) < 1e-3:
        assert left == pytest.approx(before, abs=0.1)


@pytest.mark.parametrize("data", [{}, {"cause": "x"}, {**HEALTHY.to_json(now=0, wall=0), "until": "soon"}])
def test_garbage_is_refused(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        RoleHealth.from_json(data, now=0.0, wall=0.0)


def test_a_limit_is_told_apart_from_failures() -> None:
    assert after_limit(_fail(FAILURES_TO_OPEN), "limit", 5.0, 60.0).cause is Cause.LIMIT

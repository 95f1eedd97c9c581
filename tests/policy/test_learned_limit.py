"""A limit and a pace go down by refusals alone, and try their way up again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.learned_limit import (
    CUT,
    CUT_TICKS,
    FIRST_TRIAL_TICKS,
    FORGOTTEN,
    GROWTH,
    HOLDS_TICKS,
    LONGEST_TRIAL_TICKS,
    NEXT_TRIAL_TICKS,
    SLOWEST_PER_S,
    UNLIMITED,
    LearnedLimit,
    LearnedPace,
)


def ticks_to_trial(limit: LearnedLimit) -> int:
    """Ticks at the limit until one more is tried."""
    before = limit.calls
    for count in range(1, 2000):
        limit.tick(before)
        if limit.calls > before:
            return count
    raise AssertionError("nothing is tried")


def test_a_refusal_sets_the_limit_to_what_is_held() -> None:
    limit = LearnedLimit(UNLIMITED)
    for held in (23, 22, 17, 12):
        limit.refused(held)
        assert limit.calls == held
    limit.refused(20)
    assert limit.calls == 12, "what was refused before the limit fell raises nothing"
    limit.refused(0)
    assert limit.calls == 1


def test_one_more_is_tried_ever_more_rarely_while_it_is_refused() -> None:
    limit = LearnedLimit(12)
    limit.refused(8)
    waits = []
    for _ in range(6):
        waits.append(ticks_to_trial(limit) - 1)
        assert limit.calls == 9
        limit.refused(8)
        assert limit.calls == 8
    assert waits == [FIRST_TRIAL_TICKS, 120, 240, 480, LONGEST_TRIAL_TICKS, LONGEST_TRIAL_TICKS]


def test_a_trial_that_holds_is_soon_followed_by_the_next_up_to_the_most() -> None:
    limit = LearnedLimit(10)
    limit.refused(7)
    assert ticks_to_trial(limit) == FIRST_TRIAL_TICKS + 1
    for calls in (9, 10):
        assert ticks_to_trial(limit) == HOLDS_TICKS + NEXT_TRIAL_TICKS + 1
        assert limit.calls == calls
    for _ in range(1000):
        limit.tick(10)
    assert limit.calls == 10


def test_after_trials_that_held_a_refusal_waits_long_again() -> None:
    limit = LearnedLimit(12)
    limit.refused(7)
    ticks_to_trial(limit)
    ticks_to_trial(limit)
    limit.refused(8)
    assert (limit.calls, ticks_to_trial(limit)) == (8, FIRST_TRIAL_TICKS + 1)


def test_a_limit_that_nobody_meets_is_not_tried_and_a_trial_nobody_makes_use_of_does_not_hold() -> None:
    limit = LearnedLimit(12)
    limit.refused(8)
    for _ in range(500):
        limit.tick(7)
    assert limit.calls == 8
    limit.tick(8)
    assert limit.calls == 9
    for _ in range(500):
        limit.tick(8)
    limit.refused(8)
    assert ticks_to_trial(limit) == 2 * FIRST_TRIAL_TICKS + 1, "it was a trial all the time"


def test_a_trial_must_be_met_in_ticks_that_follow_each_other() -> None:
    limit = LearnedLimit(12)
    limit.refused(8)
    ticks_to_trial(limit)
    for _ in range(20):
        limit.tick(9)
        limit.tick(8)
    limit.refused(8)
    assert ticks_to_trial(limit) == 2 * FIRST_TRIAL_TICKS + 1


@given(st.integers(1, 50), st.lists(st.one_of(st.integers(-1, 60), st.none()), max_size=300))
def test_a_limit_is_never_below_one_nor_above_the_most(most: int, steps: list[int | None]) -> None:
    limit = LearnedLimit(most)
    for step in steps:
        before = limit.calls
        if step is None:
            for _ in range(70):
                limit.tick(limit.calls)
        else:
            limit.refused(step)
            assert limit.calls <= before
        assert 1 <= limit.calls <= most


def start(pace: LearnedPace, first: float, per_s: float, seconds: float) -> float:
    """Starts at a steady rate with a tick every 5 s; the time after it."""
    steps = round(seconds * per_s)
    now = first
    for step in range(steps):
        now = first + step / per_s
        pace.began(now)
        if int((now + 1 / per_s) / 5) > int(now / 5):
            pace.tick(math.floor((now + 1 / per_s) / 5) * 5.0)
    return now


@pytest.mark.parametrize("per_s", [0.5, 1.0, 4.0])
def test_a_refusal_cuts_below_what_was_accepted(per_s: float) -> None:
    pace = LearnedPace(math.inf, 5.0)
    now = start(pace, 0.0, per_s, 100.0)
    pace.began(now)
    pace.refused(now, cut=True)
    assert pace.per_s == pytest.approx(CUT * per_s, rel=0.15)


def test_a_fleet_that_has_just_woken_up_is_not_taken_for_a_slow_one() -> None:
    pace = LearnedPace(math.inf, 5.0)
    for tick in range(100):
        pace.tick(5.0 * tick)
    for call in range(6):
        pace.began(497.0 + call / 10)
    pace.refused(497.6, cut=True)
    assert pace.per_s == pytest.approx(CUT * 5, rel=0.01), "five were accepted, in a second at least"


def test_where_nothing_was_accepted_there_is_no_pace_to_learn() -> None:
    pace = LearnedPace(math.inf, 5.0)
    for call in range(24):
        pace.began(call / 100)
    for call in range(23):
        pace.refused(1.0 + call / 100, cut=call == 22)
    assert pace.per_s == CUT / (1.22 - 0.0), "one was"
    pace = LearnedPace(math.inf, 5.0)
    pace.began(0.0)
    pace.refused(0.1, cut=True)
    assert pace.per_s == math.inf


def test_it_is_cut_once_in_two_ticks_and_not_by_what_a_window_refuses() -> None:
    pace = LearnedPace(1.0, 5.0)
    for call in range(20):
        pace.began(call * 0.1)
    pace.refused(2.0, cut=False)
    assert pace.per_s == 1.0
    pace.refused(2.0, cut=True)
    assert pace.per_s == CUT
    for _ in range(5):
        pace.refused(2.1, cut=True)
    assert pace.per_s == CUT
    for tick in range(CUT_TICKS):
        pace.tick(5.0 * (tick + 1))
    grown = pace.per_s
    assert grown == pytest.approx(CUT * GROWTH**CUT_TICKS)
    pace.refused(10.1, cut=True)
    assert pace.per_s < CUT * grown * 1.0001


def test_it_grows_a_hundredth_a_tick_and_is_forgotten_in_the_end() -> None:
    pace = LearnedPace(math.inf, 5.0)
    for call in range(11):
        pace.began(call * 0.1)
    pace.refused(1.0, cut=True)
    assert pace.per_s == pytest.approx(CUT * 10)
    ticks = 0
    while pace.per_s < math.inf:
        before = pace.per_s
        ticks += 1
        pace.tick(5.0 * ticks)
        assert pace.per_s in (pytest.approx(before * GROWTH), math.inf)
    assert ticks == math.ceil(math.log(FORGOTTEN, GROWTH))


def test_a_pace_grows_back_to_the_fastest_and_no_further() -> None:
    pace = LearnedPace(10.0, 5.0)
    for call in range(20):
        pace.began(call * 0.1)
    pace.refused(2.0, cut=True)
    assert pace.per_s == CUT * 9.5
    for tick in range(40):
        pace.tick(5.0 * tick)
        assert pace.per_s <= 10.0
    assert pace.per_s == 10.0


@pytest.mark.parametrize(("fastest", "slowest"), [(1.0, SLOWEST_PER_S), (0.001, 0.001)])
def test_no_pace_is_slower_than_a_call_a_minute_unless_it_is_asked_for(fastest: float, slowest: float) -> None:
    pace = LearnedPace(fastest, 5.0)
    for cut in range(100):
        now = 10.0 * cut
        pace.began(now)
        pace.began(now)
        pace.refused(now, cut=True)
        pace.tick(now + 5)
        pace.tick(now + 10)
    assert slowest <= pace.per_s <= slowest * GROWTH**CUT_TICKS


steps = st.lists(
    st.tuples(st.sampled_from(["began", "refused", "tick", "wait"]), st.floats(0, 30), st.booleans()), max_size=80
)


@given(st.one_of(st.just(math.inf), st.floats(0.001, 100)), steps)
def test_only_refusals_slow_it_and_it_never_passes_the_fastest(
    fastest: float, steps: list[tuple[str, float, bool]]
) -> None:
    pace = LearnedPace(fastest, 5.0)
    now = 0.0
    for step, seconds, cut in steps:
        before = pace.per_s
        if step == "wait":
            now += seconds
        elif step == "refused":
            pace.refused(now, cut=cut)
            assert pace.per_s <= before
            assert cut or pace.per_s == before
        elif step == "tick":
            now += 5.0
            pace.tick(now)
            assert pace.per_s >= before
        else:
            pace.began(now)
            assert pace.per_s == before
        assert min(SLOWEST_PER_S, fastest) <= pace.per_s <= fastest


def test_a_cap_bounds_it_and_what_refusals_taught_stays_known() -> None:
    limit = LearnedLimit(64)
    limit.cap(32)
    assert limit.calls == 32
    limit.cap(48)
    assert limit.calls == 48  # it was at its cap
    limit.refused(8)
    limit.cap(60)
    assert (limit.calls, limit.most) == (8, 60)
    limit.cap(4)
    assert limit.calls == 4

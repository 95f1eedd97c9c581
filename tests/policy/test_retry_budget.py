"""Retries are a share of the requests, in any window, and come back scattered."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.retry_budget import RetryBudget, retry_pause_s


def allowed(budget: RetryBudget, now: float, asked: int) -> int:
    return sum(budget.may_retry(now) for _ in range(asked))


def test_a_fifth_of_the_requests_and_one_a_second() -> None:
    budget = RetryBudget(100.0)
    assert budget.left == 10
    for _ in range(200):
        budget.note_request(100.0)
    assert budget.left == 50
    assert allowed(budget, 100.0, 1000) == 50
    assert budget.left == 0


def test_an_outage_is_not_multiplied() -> None:
    """A hundred calls a second fail, and each wants to be tried again: the upstream sees a fifth more, not twice as much."""
    budget = RetryBudget(0.0, least_per_s=0.0)
    sent = retried = 0
    for tick in range(6000):
        now = tick / 100
        budget.note_request(now)
        sent += 1
        retried += budget.may_retry(now)
    assert retried <= 0.2 * sent
    assert retried >= 0.17 * sent


def test_what_is_long_ago_counts_no_more() -> None:
    budget = RetryBudget(0.0, least_per_s=0.0)
    for _ in range(100):
        budget.note_request(0.5)
    assert allowed(budget, 9.9, 5) == 5
    assert allowed(budget, 10.0, 100) == 0, "the requests have left the window, their retries have not"
    for _ in range(100):
        budget.note_request(10.0)
    assert allowed(budget, 10.0, 100) == 15
    assert allowed(budget, 19.0, 100) == 5, "now five retries have left as well"
    assert allowed(budget, 1e9, 100) == 0


def test_a_clock_that_went_back_changes_nothing() -> None:
    budget = RetryBudget(100.0, least_per_s=0.0)
    for _ in range(100):
        budget.note_request(100.0)
    assert allowed(budget, 50.0, 100) == 20
    assert allowed(budget, 100.0, 100) == 0


@pytest.mark.parametrize("wrong", [{"share": -0.1}, {"least_per_s": -1.0}, {"window_s": 0.0}, {"share": math.nan}])
def test_no_such_budget(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no such budget"):
        RetryBudget(0.0, **wrong)


@given(
    st.floats(0, 1),
    st.floats(0, 3),
    st.floats(0.5, 30),
    st.floats(0, 1e6),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.integers(0, 5)), max_size=80),
)
def test_a_retry_is_allowed_when_those_of_the_window_are_within_share_and_minimum(
    share: float, least_per_s: float, window_s: float, begin: float, steps: list[tuple[float, int, int]]
) -> None:
    """Against plain lists of moments: what is in the slice of now and the nine before it."""
    budget = RetryBudget(begin, share=share, least_per_s=least_per_s, window_s=window_s)
    slice_s = window_s / 10
    requests: list[int] = []
    retries: list[int] = []
    now = begin
    for step, asked, wanted in steps:
        now += step * window_s / 4
        number = math.floor(now / slice_s)
        if abs(now / slice_s - round(now / slice_s)) < 1e-6:
            continue  # on the edge of a slice: rounding decides
        requests = [one for one in requests if one > number - 10] + [number] * asked
        retries = [one for one in retries if one > number - 10]
        for _ in range(asked):
            budget.note_request(now)
        may = len(requests) * share + least_per_s * window_s
        for _ in range(wanted):
            if abs(may - round(may)) > 1e-6:
                assert budget.may_retry(now) == (len(retries) + 1 <= may)
            elif not budget.may_retry(now):
                continue
            else:
                assert len(retries) + 1 <= may + 1e-6
            if len(retries) + 1 <= may + 1e-6:
                retries.append(number)


def test_pauses_double_up_to_the_longest() -> None:
    full = [retry_pause_s(attempt, 1.0, 0.5, 6.0) for attempt in (1, 2, 3, 4, 5, 6, 9999)]
    assert full == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0, 6.0]
    assert retry_pause_s(0, 1.0, 0.5, 6.0) == 0.5


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0.001, 60), st.floats(0.001, 600))
def test_a_pause_is_anywhere_below_its_bound(attempt: int, chance: float, base_s: float, longest_s: float) -> None:
    pause_s = retry_pause_s(attempt, chance, base_s, longest_s)
    bound_s = retry_pause_s(attempt, 1.0, base_s, longest_s)
    assert 0.0 <= pause_s <= bound_s <= longest_s
    assert pause_s == pytest.approx(chance * bound_s)

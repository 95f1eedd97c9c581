"""Never more than the burst and what flowed in; what it says about waiting is so."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.policy.token_bucket import TokenBucket

RATES = st.floats(0.001, 1e5)
BURSTS = st.floats(0.1, 1e6)
NOWS = st.floats(0.0, 1e7)


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(2.0, 3.0, 100.0)
    assert [bucket.take(1, 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(1, 100.0) == 0.5
    assert bucket.take(1, 100.25) == 0.25
    assert bucket.take(1, 100.5) == 0.0
    assert bucket.take(3, 100.5) == 1.5


def test_no_more_than_the_burst_gathers() -> None:
    bucket = TokenBucket(10.0, 5.0, 0.0)
    assert bucket.take(5, 0.0) == 0.0
    assert bucket.take(0, 1e9) == 0.0
    assert bucket.tokens == 5.0


def test_what_can_never_be_is_infinitely_far() -> None:
    assert TokenBucket(10.0, 5.0, 0.0).take(5.1, 0.0) == math.inf
    dry = TokenBucket(0.0, 5.0, 0.0)
    assert dry.take(5, 0.0) == 0.0
    assert dry.take(1, 1e9) == math.inf


def test_off() -> None:
    bucket = TokenBucket(math.inf, 0.0, 0.0)
    assert [bucket.take(n, now) for n, now in [(1, 0.0), (1e9, 0.0), (1, 5.0), (1, 3.0), (0, 3.0)]] == [0.0] * 5
    assert bucket.tokens == 0.0


def test_what_was_not_used_comes_back_up_to_the_burst() -> None:
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(8, 0.0)
    bucket.give_back(5)
    assert bucket.tokens == 7.0
    bucket.give_back(5)
    assert bucket.tokens == 10.0


def test_another_size_counts_from_now_on() -> None:
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(10, 0.0)
    bucket.resize(100.0, 20.0, 5.0)
    assert (bucket.tokens, bucket.rate, bucket.burst) == (5.0, 100.0, 20.0)
    assert bucket.take(20, 5.0) == pytest.approx(0.15)
    bucket.resize(100.0, 2.0, 5.0)
    assert bucket.tokens == 2.0


def test_a_clock_that_went_back_brings_nothing_twice() -> None:
    bucket = TokenBucket(1.0, 10.0, 0.0)
    bucket.take(10, 100.0)
    assert bucket.take(1, 90.0) == 11.0, "nothing flows in until the clock is where it was, and then a second more"
    assert bucket.take(1, 100.5) == 0.5
    assert bucket.take(1, 101.0) == 0.0


@pytest.mark.parametrize(("rate", "burst"), [(-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_sizes_below_zero_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="below 0"):
        TokenBucket(rate, burst, 0.0)
    bucket = TokenBucket(1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="below 0"):
        bucket.resize(rate, burst, 0.0)


@pytest.mark.parametrize("n", [-1.0, math.nan])
def test_no_number_of_tokens_is_below_zero(n: float) -> None:
    bucket = TokenBucket(1.0, 5.0, 0.0)
    bucket.take(2, 0.0)
    with pytest.raises(ValueError, match="cannot be taken"):
        bucket.take(n, 0.0)
    with pytest.raises(ValueError, match="cannot be given back"):
        bucket.give_back(n)
    assert bucket.tokens == 3.0


@given(RATES, BURSTS, NOWS, st.floats(0, 1), st.floats(0, 1))
def test_after_the_wait_it_is_there_and_not_before(
    rate: float, burst: float, now: float, first: float, second: float
) -> None:
    bucket = TokenBucket(rate, burst, now)
    bucket.take(burst * first, now)
    n = burst * second
    wait_s = bucket.take(n, now)
    if wait_s:
        grain_s = 1e-9 * (now + wait_s) + 1e-9
        if wait_s > 3 * grain_s:
            assert bucket.take(n, now + wait_s - 2 * grain_s) > 0.0
        assert bucket.take(n, now + wait_s + 2 * grain_s) == 0.0


@given(RATES, BURSTS, st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1.2)), max_size=50))
def test_no_more_is_taken_than_burst_and_inflow(rate: float, burst: float, steps: list[tuple[float, float]]) -> None:
    """Wherever the clock jumps, over any stretch from the beginning."""
    now = latest = 1000.0
    bucket = TokenBucket(rate, burst, now)
    taken = 0.0
    for step_s, share in steps:
        now += step_s
        latest = max(latest, now)
        if bucket.take(burst * share, now) == 0.0:
            taken += burst * share
        assert taken <= (burst + rate * (latest - 1000.0)) * (1 + 1e-9)


class Bucket(RuleBasedStateMachine):
    @initialize(rate=RATES | st.just(0.0) | st.just(math.inf), burst=BURSTS | st.just(0.0))
    def begin(self, rate: float, burst: float) -> None:
        self.now = 1000.0
        self.bucket = TokenBucket(rate, burst, self.now)

    @rule(n=st.floats(0, 1e6), step_s=st.floats(-1.0, 10.0))
    def take(self, n: float, step_s: float) -> None:
        self.now += step_s
        before = self.bucket.tokens
        wait_s = self.bucket.take(n, self.now)
        assert wait_s >= 0.0
        if wait_s:
            assert self.bucket.tokens >= before, "nothing is taken"
            assert self.bucket.tokens < n
            assert (wait_s == math.inf) == (n > self.bucket.burst or self.bucket.rate == 0.0)

    @rule(n=st.floats(0, 1e6))
    def give_back(self, n: float) -> None:
        self.bucket.give_back(n)

    @rule(rate=RATES | st.just(math.inf), burst=BURSTS, step_s=st.floats(-1.0, 10.0))
    def resize(self, rate: float, burst: float, step_s: float) -> None:
        self.now += step_s
        self.bucket.resize(rate, burst, self.now)

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "bucket"):
            assert 0.0 <= self.bucket.tokens <= self.bucket.burst


TestBucket = Bucket.TestCase
TestBucket.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

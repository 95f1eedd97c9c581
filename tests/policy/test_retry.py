"""Again or not, when, at whose cost, and with which conversation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.policy.retry import LONGEST_PAUSE_S, RULES, UNCHARGED_FACTOR, Fate, Past, RetryDecision, decide

_ENDINGS = st.sampled_from([ending for ending in Ending if ending not in (Ending.LANDED, Ending.CANCELLED)])
_PATIENT = {Ending.LOGIN_MISSING, Ending.RATE_LIMITED}


def _decide(
    ending: Ending,
    past: Past | None = None,
    *,
    max_attempts: int = 3,
    crash_loop: int = 5,
    chance: float = 0.5,
    quick: bool = False,
    resumed: bool = False,
) -> RetryDecision:
    return decide(
        ending,
        past or Past(),
        backoff_s=5.0,
        chance=chance,
        crash_loop=crash_loop,
        max_attempts=max_attempts,
        quick=quick,
        resumed=resumed,
    )


def test_every_ending_has_its_rule() -> None:
    assert set(RULES) == set(Ending)


@given(
    endings=st.lists(st.tuples(_ENDINGS, st.booleans()), min_size=700, max_size=700),
    max_attempts=st.integers(1, 20),
    crash_loop=st.integers(2, 10),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_every_task_ends_unless_its_role_is_what_it_waits_for(
    endings: list[tuple[Ending, bool]], max_attempts: int, crash_loop: int, chance: float
) -> None:
    past, counted = Past(tries=0), 0
    for ending, quick in endings:
        before = past
        past = Past(attempts=past.attempts, crashes=past.crashes, tries=past.tries + 1)
        decision = _decide(ending, past, max_attempts=max_attempts, crash_loop=crash_loop, chance=chance, quick=quick)
        past = decision.past
        if decision.fate is not Fate.AGAIN:
            assert ending not in _PATIENT
            return
        assert 0 < decision.after_s <= LONGEST_PAUSE_S * 1.25
        assert past.crashes in (0, before.crashes + 1)
        assert past.crashes < crash_loop
        died = quick and ending is Ending.CRASHED
        counted += not died and ending not in _PATIENT
        assert counted < max_attempts * UNCHARGED_FACTOR
    patient = sum(ending in _PATIENT for ending, _ in endings)
    assert len(endings) - patient < (counted + 1) * crash_loop, "went on for ever"


_FREE = sorted(
    {
        Ending.CONFLICT,
        Ending.LOGIN_MISSING,
        Ending.RATE_LIMITED,
        Ending.STALE,
        Ending.STOPPED,
        Ending.UNAVAILABLE,
    }
)


@pytest.mark.parametrize("ending", _FREE)
def test_nobodys_fault_is_not_charged(ending: Ending) -> None:
    decision = _decide(ending, max_attempts=1)
    assert decision.fate is Fate.AGAIN
    assert decision.past.attempts == 0


def test_everything_else_is_charged_or_held() -> None:
    others = set(Ending) - set(_FREE) - {Ending.LANDED, Ending.CANCELLED}
    fates = {ending: _decide(ending, max_attempts=1).fate for ending in others}
    assert {ending for ending, fate in fates.items() if fate is not Fate.FAILED} == {Ending.OVER_BUDGET}
    assert fates[Ending.OVER_BUDGET] is Fate.HELD


@pytest.mark.parametrize("ending", sorted(_PATIENT))
def test_waiting_for_a_limit_or_a_login_uses_nothing_up(ending: Ending) -> None:
    decision = _decide(ending, Past(attempts=2, tries=100))
    assert decision.fate is Fate.AGAIN
    assert decision.past == Past(attempts=2, tries=99)
    assert decision.resume


def test_the_last_charged_attempt_is_the_end_and_says_so() -> None:
    decision = _decide(Ending.GATE_FAILED, Past(attempts=2, tries=3))
    assert decision.fate is Fate.FAILED
    assert decision.why == "3 of 3 attempts used"
    assert not decision.resume


def test_tasks_that_failed_together_do_not_come_back_together() -> None:
    pauses = [
        _decide(Ending.GATE_FAILED, Past(attempts=1, tries=2), chance=chance).after_s for chance in (0.0, 0.5, 0.999)
    ]
    assert pauses == pytest.approx([7.5, 10.0, 12.5], abs=0.01)


def test_pauses_double_up_to_the_cap() -> None:
    pauses = [_decide(Ending.GATE_FAILED, Past(attempts=n, tries=n + 1), max_attempts=99).after_s for n in range(10)]
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_quick_deaths_in_a_row_hold_the_task_before_they_fail_it() -> None:
    past, pauses = Past(), []
    for number in range(1, 5):
        decision = _decide(Ending.CRASHED, past, max_attempts=1, quick=True)
        assert (decision.fate, decision.past.crashes, decision.past.attempts) == (Fate.AGAIN, number, 0)
        past, pauses = decision.past, [*pauses, decision.after_s]
    assert pauses == [5.0, 10.0, 20.0, 40.0]
    last = _decide(Ending.CRASHED, past, max_attempts=1, quick=True)
    assert last.fate is Fate.HELD
    assert "crash loop, 5 times" in last.why


@given(_ENDINGS, st.booleans())
def test_anything_but_a_quick_death_starts_their_count_anew(ending: Ending, quick: bool) -> None:
    crashes = _decide(ending, Past(crashes=3), quick=quick).past.crashes
    assert crashes == (4 if quick and ending is Ending.CRASHED else 0)


def test_a_slow_crash_is_charged() -> None:
    assert _decide(Ending.CRASHED).past.attempts == 1
    assert _decide(Ending.CRASHED, max_attempts=1).fate is Fate.FAILED


@pytest.mark.parametrize(
    ("ending", "first", "second"),
    [
        (Ending.GATE_FAILED, True, True),
        (Ending.OVER_TURNS, True, True),
        (Ending.OVER_BUDGET, True, True),
        (Ending.STOPPED, True, True),
        (Ending.CRASHED, True, False),
        (Ending.FAILED, True, False),
        (Ending.STALLED, True, False),
        (Ending.LOOPING, False, False),
        (Ending.CONTEXT_OVERFLOW, False, False),
        (Ending.CONFLICT, False, False),
        (Ending.DENIED, False, False),
    ],
)
def test_which_endings_go_on_with_the_conversation(ending: Ending, first: bool, second: bool) -> None:
    assert _decide(ending).resume is first
    assert _decide(ending, resumed=True).resume is second

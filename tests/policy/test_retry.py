"""Again or not, when, and at whose cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.policy.retry import LONGEST_PAUSE_S, UNCHARGED, UNCHARGED_FACTOR, decide

_ENDINGS = st.sampled_from([ending for ending in Ending if ending not in (Ending.LANDED, Ending.CANCELLED)])


@given(
    endings=st.lists(_ENDINGS, min_size=600, max_size=600),
    max_attempts=st.integers(1, 100),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_every_task_ends(endings: list[Ending], max_attempts: int, chance: float) -> None:
    attempts = 0
    for tries, ending in enumerate(endings, start=1):
        decision = decide(
            ending, attempts=attempts, tries=tries, max_attempts=max_attempts, backoff_s=5.0, chance=chance
        )
        attempts = decision.attempts
        if not decision.again:
            assert attempts >= max_attempts or tries >= max_attempts * UNCHARGED_FACTOR
            return
        assert 0 < decision.after_s <= LONGEST_PAUSE_S * 1.25
    raise AssertionError("went on for ever")


@pytest.mark.parametrize("ending", sorted(UNCHARGED))
def test_nobodys_fault_is_not_charged(ending: Ending) -> None:
    decision = decide(ending, attempts=0, tries=1, max_attempts=1, backoff_s=5.0, chance=0.5)
    assert decision.again
    assert decision.attempts == 0


def test_the_last_charged_attempt_is_the_end_and_says_so() -> None:
    decision = decide(Ending.GATE_FAILED, attempts=2, tries=3, max_attempts=3, backoff_s=5.0, chance=0.5)
    assert not decision.again
    assert decision.why == "3 of 3 attempts used"


def test_pauses_double_up_to_the_cap() -> None:
    pauses = [
        decide(Ending.CRASHED, attempts=n, tries=n + 1, max_attempts=99, backoff_s=5.0, chance=0.5).after_s
        for n in range(10)
    ]
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert pauses[-1] == LONGEST_PAUSE_S

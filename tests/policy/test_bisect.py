from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.bisect import Bisection


@given(st.lists(st.booleans(), max_size=60))
def test_it_ends_between_a_stack_that_passed_and_one_that_failed(verdicts: list[bool]) -> None:
    """Whatever the gate says about the stacks in between (flaky or not), the last one failed."""
    passes = [True, *verdicts, False]  # index = number of changes stacked
    search = Bisection(bad=len(passes) - 1)
    asked = 0
    while (count := search.probe) is not None:
        asked += 1
        search = search.told(count, passed=passes[count])
    assert search.culprit is not None
    assert passes[search.culprit]
    assert not passes[search.culprit + 1]
    assert asked <= math.ceil(math.log2(len(passes) - 1))


@given(st.integers(1, 60), st.data())
def test_a_single_bad_change_is_found(size: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, size - 1))
    search = Bisection(bad=size)
    while (count := search.probe) is not None:
        search = search.told(count, passed=count <= bad)
    assert search.culprit == bad
    assert search.good == bad


def test_answers_to_questions_it_did_not_ask_are_refused() -> None:
    with pytest.raises(ValueError):
        Bisection(bad=4).told(4, passed=True)
    with pytest.raises(ValueError):
        Bisection(bad=2, good=2)

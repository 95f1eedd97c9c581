"""Evidence first: the stronger word wins, and what says nothing about the work is no outcome."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.policy.evidence import FAILURES, Evidence, QualityEstimator

evidence = st.builds(
    Evidence,
    ending=st.sampled_from(Ending),
    findings=st.integers(0, 20),
    retries=st.integers(0, 20),
    reverted=st.booleans(),
    untested=st.booleans(),
    verdict=st.sampled_from([None, True, False]),
)


@given(evidence)
def test_a_score_is_a_share_and_comes_with_an_outcome(seen: Evidence) -> None:
    found = QualityEstimator().estimate(seen)
    assert (found.score is None) == (found.landed is None)
    assert found.score is None or 0.0 <= found.score <= 1.0
    if seen.verdict is not None and found.landed is not None and found.basis == "verdict":
        assert found.landed is seen.verdict
    if seen.ending is not Ending.LANDED and seen.ending not in FAILURES and not seen.reverted:
        assert found.landed is None


@pytest.mark.parametrize(
    ("seen", "landed", "score", "basis"),
    [
        (Evidence(ending=Ending.LANDED), True, 1.0, "landed"),
        (Evidence(ending=Ending.LANDED, retries=1), True, 0.9, "landed"),
        (Evidence(ending=Ending.LANDED, untested=True), True, 0.8, "untested"),
        (Evidence(ending=Ending.LANDED, findings=2), True, 0.8, "findings"),
        (Evidence(ending=Ending.LANDED, reverted=True), False, 0.0, "reverted"),
        (Evidence(ending=Ending.LANDED, reverted=True, verdict=True), True, 1.0, "verdict"),
        (Evidence(ending=Ending.GATE_FAILED), False, 0.2, "gate_failed"),
        (Evidence(ending=Ending.EMPTY), False, 0.0, "empty"),
        (Evidence(ending=Ending.OVER_BUDGET), None, None, "over_budget"),
        (Evidence(ending=Ending.CONFLICT, verdict=False), None, None, "conflict"),
    ],
)
def test_the_strongest_word_wins(seen: Evidence, landed: bool | None, score: float | None, basis: str) -> None:
    found = QualityEstimator().estimate(seen)
    assert (found.landed, found.score, found.basis) == (landed, score, basis)

"""Comparisons with what was chosen: they find the truth where they can, and say so where they cannot."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.off_policy import LoggedChoice, evaluate

TRUTH = {"cheap": 0.5, "dear": 0.9}
COSTS = {"cheap": 0.1, "dear": 0.2}


def logged(count: int, seed: int, *, first: float, other: dict[str, float]) -> list[LoggedChoice]:
    chance, made = random.Random(seed), []
    for _ in range(count):
        arm = "cheap" if chance.random() < first else "dear"
        landed = chance.random() < TRUTH[arm]
        made.append(
            LoggedChoice(
                arm=arm,
                cell="bug",
                costs=COSTS,
                net_usd=landed - COSTS[arm],
                other=other,
                propensities={"cheap": first, "dear": 1 - first},
            )
        )
    return made


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    truth, inside = TRUTH["dear"] - COSTS["dear"], 0
    for seed in range(60):
        found = evaluate(logged(400, seed, first=0.8, other={"cheap": 0.0, "dear": 1.0}))
        inside += abs(found.other_usd - truth) <= found.other_half_usd
        assert found.effective == pytest.approx(80, abs=35)
    assert inside >= 52


def test_a_clear_difference_is_told_and_which_way() -> None:
    better = evaluate(logged(3000, 1, first=0.7, other={"cheap": 0.0, "dear": 1.0}))
    assert better.why == ""
    assert better.difference_usd - better.difference_half_usd > 0
    worse = evaluate(logged(3000, 1, first=0.3, other={"cheap": 1.0, "dear": 0.0}))
    assert worse.why == ""
    assert worse.difference_usd + worse.difference_half_usd < 0


def test_what_cannot_be_told_is_not_told() -> None:
    assert "at least 30" in evaluate(logged(29, 1, first=0.5, other={"cheap": 1.0})).why
    assert "weigh as much" in evaluate(logged(300, 1, first=0.99, other={"dear": 1.0})).why
    assert "chance" in evaluate(logged(300, 1, first=0.5, other={"cheap": 0.5, "dear": 0.5})).why
    assert "never left to chance" in evaluate(logged(300, 1, first=1.0, other={"dear": 1.0})).why


@given(seed=st.integers(0, 10_000), first=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_a_policy_compared_with_itself_differs_by_chance_alone(seed: int, first: float) -> None:
    same = evaluate(logged(200, seed, first=first, other={"cheap": first, "dear": 1 - first}))
    assert same.effective == pytest.approx(200)
    assert abs(same.difference_usd) < 0.2


@pytest.mark.parametrize("first", [0.1, 0.5, 0.9])
def test_the_interval_of_that_difference_holds_nothing_about_as_often_as_it_says(first: float) -> None:
    same = [evaluate(logged(200, seed, first=first, other={"cheap": first, "dear": 1 - first})) for seed in range(40)]
    assert sum(abs(one.difference_usd) <= one.difference_half_usd for one in same) >= 33

"""The routers: what they choose is what they say, floors and pins hold, and they learn what there is to learn."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.task import Task
from coordinator.policy.belief import Belief, Weight, logistic
from coordinator.policy.exploration import drawn, floors, with_floor
from coordinator.policy.learned_router import LearnedRouter
from coordinator.policy.rival_routers import POLICIES, policy_named
from coordinator.policy.routing import KINDS, Arm, RoutingContext, allowed, kind_of_task, size_of_task

SIZES = ("small", "medium", "large")


def arm(name: str, cost: float) -> Arm:
    return Arm(cost_usd=cost, delay_usd=0.3, list_usd=cost, name=name)


arms = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=7).map(
    lambda costs: tuple(arm(f"arm-{number}", cost) for number, cost in enumerate(costs))
)
contexts = st.builds(
    RoutingContext,
    attempt=st.integers(0, 4),
    attempts=st.integers(1, 5),
    kind=st.sampled_from(KINDS),
    previous=st.sampled_from(["", "arm-0", "arm-1", "gone"]),
    size=st.sampled_from(SIZES),
    value_usd=st.floats(0.0, 50.0),
)
lessons = st.lists(st.tuples(contexts, st.integers(0, 6), st.booleans(), st.floats(0.0, 30.0)), max_size=12)


@given(name=st.sampled_from(POLICIES), offered=arms, context=contexts, past=lessons, seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_probabilities_sum_to_one_and_keep_the_floor(
    name: str,
    offered: tuple[Arm, ...],
    context: RoutingContext,
    past: list[tuple[RoutingContext, int, bool, float]],
    seed: int,
) -> None:
    policy, now = policy_named(name, drift=0.01, floor=0.02), 0.0
    for seen, number, landed, hours in past:
        now += hours
        policy.learn(seen, offered[number % len(offered)], landed, now)
    chances = policy.propensities(context, offered, now, random.Random(seed))
    assert sum(chances) == pytest.approx(1.0)
    assert all(one >= 0.0 for one in chances)
    if name != "first" and len(offered) > 1:
        least = floors([one.cost_usd for one in offered], 0.02)
        assert all(one >= floor * (1 - 1e-9) for one, floor in zip(chances, least, strict=True))
    if len(offered) == 1:
        assert chances == (1.0,)
    assert policy.seen == len(past)


@given(name=st.sampled_from(POLICIES), offered=arms, context=contexts, past=lessons, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_same_past_and_the_same_chance_give_the_same_choice_also_after_a_restart(
    name: str,
    offered: tuple[Arm, ...],
    context: RoutingContext,
    past: list[tuple[RoutingContext, int, bool, float]],
    seed: int,
) -> None:
    one, other = policy_named(name, drift=0.01, floor=0.02), policy_named(name, drift=0.01, floor=0.02)
    for seen, number, landed, now in past:
        one.learn(seen, offered[number % len(offered)], landed, now)
    other.restore(json.loads(json.dumps(one.to_json())))
    assert other.seen == one.seen
    first = one.propensities(context, offered, 100.0, random.Random(seed))
    assert other.propensities(context, offered, 100.0, random.Random(seed)) == pytest.approx(first, abs=1 / 32)


@given(costs=st.lists(st.floats(0.0, 9.0), min_size=2, max_size=8), share=st.floats(0.0, 0.5))
def test_the_floor_is_dealt_by_price(costs: list[float], share: float) -> None:
    dealt = floors(costs, share)
    assert sum(dealt) == pytest.approx(share)
    cheapest, dearest = costs.index(min(costs)), costs.index(max(costs))
    assert dealt[cheapest] >= dealt[dearest]
    preferred = [float(number == 0) for number in range(len(costs))]
    mixed = with_floor(preferred, costs, share)
    assert mixed[0] == pytest.approx(1 - share + dealt[0])


@given(weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), chance=st.floats(0.0, 1.0, exclude_max=True))
def test_a_draw_is_one_of_them(weights: list[float], chance: float) -> None:
    probabilities = [one / sum(weights) for one in weights]
    number = drawn(probabilities, chance)
    assert sum(probabilities[:number]) <= chance + 1e-9
    assert chance <= sum(probabilities[: number + 1]) + 1e-9


def test_a_belief_moves_towards_what_is_seen_and_knows_more_after_it() -> None:
    belief, one = Belief(), Weight("one", 0.0, 1.0)
    sums = [one, Weight("two", 0.0, 0.5)]
    before = belief.variance(sums)
    for _ in range(40):
        belief.see(sums, True)
    assert logistic(belief.mean(sums)) > 0.85
    assert belief.variance(sums) < before
    assert belief.mean([one]) > 0.5, "the wider prior takes the larger share"
    belief.widen("one", 100.0, 2.0)
    assert belief.deviation("one") ** 2 == pytest.approx(2.0)


@given(steps=st.lists(st.tuples(st.sets(st.integers(0, 4), min_size=1), st.booleans()), max_size=40))
@settings(deadline=None)
def test_a_belief_never_gets_less_certain_by_seeing(steps: list[tuple[set[int], bool]]) -> None:
    belief = Belief()
    weights = [Weight(f"w{number}", 0.0, 0.7) for number in range(5)]
    for chosen, happened in steps:
        named = [weights[number] for number in sorted(chosen)]
        before = [belief.variance([one]) for one in weights]
        belief.see(named, happened)
        after = [belief.variance([one]) for one in weights]
        assert all(late <= early + 1e-12 for early, late in zip(before, after, strict=True))
        assert all(one > 0 for one in after)
    _, triangle = belief.joint([[one] for one in weights])
    assert [row[-1] > 0 for row in triangle] == [True] * 5


def test_it_learns_that_a_cheap_arm_is_as_good() -> None:
    router, chance = LearnedRouter(), random.Random(3)
    offered = (arm("cheap", 0.03), arm("dear", 1.5))
    context = RoutingContext(kind="upgrade", size="medium", value_usd=1.5)
    for _ in range(60):
        router.learn(context, offered[0], chance.random() < 0.9, 1.0)
        router.learn(context, offered[1], chance.random() < 0.9, 1.0)
    assert router.propensities(context, offered, 1.0, chance)[0] > 0.95
    assert router.expected(context, offered[0])[0] == pytest.approx(0.88, abs=0.08)


def test_with_retries_left_it_begins_cheaper() -> None:
    """The plan: a cheap arm is worth trying first while a dear one can still follow."""
    router, offered = LearnedRouter(), (arm("cheap", 0.03), arm("dear", 1.2))
    values = {"kind": "bug", "size": "medium", "value_usd": 5.0}
    for number in range(120):
        router.learn(RoutingContext(**values), offered[0], number % 2 == 0, 1.0)  # type: ignore[arg-type]
        router.learn(RoutingContext(**values), offered[1], number % 10 < 8, 1.0)  # type: ignore[arg-type]
    alone = router.propensities(RoutingContext(attempts=1, **values), offered, 1.0, random.Random(1))  # type: ignore[arg-type]
    planned = router.propensities(RoutingContext(attempts=3, **values), offered, 1.0, random.Random(1))  # type: ignore[arg-type]
    assert planned[0] > alone[0] + 0.3


def test_a_silently_worse_arm_is_left_because_of_drift() -> None:
    def share_of_first(drift: float) -> float:
        router, chance = LearnedRouter(drift=drift), random.Random(5)
        offered = (arm("a", 0.1), arm("b", 0.1))
        context = RoutingContext(attempts=1, kind="bug", size="medium", value_usd=5.0)
        for number in range(300):
            router.learn(context, offered[0], chance.random() < 0.9, number / 10)
            router.learn(context, offered[1], chance.random() < 0.7, number / 10)
        for number in range(40):
            router.learn(context, offered[0], chance.random() < 0.4, 30 + number)
        return router.propensities(context, offered, 70.0, chance)[0]

    assert share_of_first(0.016) < 0.1
    assert share_of_first(0.0) > share_of_first(0.016)


def test_pins_caps_and_breakers() -> None:
    offered = (arm("a", 0.1), arm("b", 1.0), arm("c", 3.0))
    assert allowed(offered) == offered
    assert [one.name for one in allowed(offered, barred={"a"})] == ["b", "c"]
    assert [one.name for one in allowed(offered, cap_usd=1.0)] == ["a", "b"]
    assert [one.name for one in allowed(offered, barred={"a"}, cap_usd=0.05)] == ["b"]
    assert allowed(offered, barred={"a", "b", "c"}) == offered
    assert arm("m via there", 1.0).model == "m"
    assert arm("m via there", 1.0).upstream == "there"


@pytest.mark.parametrize(
    ("labels", "kind"),
    [((), "task"), (("x", "Feature"), "feature"), (("discovery", "ruff", "F401"), "lint"), (("pip-audit",), "upgrade")],
)
def test_kinds(labels: tuple[str, ...], kind: str) -> None:
    assert kind_of_task(Task(id="t", prompt="p", labels=labels)) == kind


def test_sizes() -> None:
    assert [size_of_task(Task(id="t", prompt="p" * n)) for n in (10, 1000, 10_000)] == list(SIZES)

"""The same order everywhere, shares by weight, and only the keys of a node that goes move."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.rendezvous import ranked
from tests.house.source import TOP

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name.encode("utf-8", "replace").decode() == name)
NODES = st.dictionaries(NAMES, st.floats(0.01, 100), min_size=1, max_size=8).map(lambda found: tuple(found.items()))
KEYS = st.text(max_size=40) | st.binary(max_size=40)


def test_the_order_is_fixed_for_all_releases() -> None:
    """Another one would empty every cache once."""
    nodes = [("alpha", 1.0), ("beta", 2.0), ("gamma", 0.5)]
    orders = [" ".join(ranked(key, nodes)) for key in ("session-1", "session-2", "session-3", b"\xff", "", "\udcff")]
    assert orders == [
        "alpha beta gamma",
        "beta alpha gamma",
        "beta alpha gamma",
        "alpha beta gamma",
        "beta gamma alpha",
        "beta alpha gamma",
    ]


def test_another_process_comes_to_the_same_order() -> None:
    program = "from coordinator.policy.rendezvous import ranked; print(ranked('x', [(n, 1.0) for n in 'abcdefgh']))"
    orders = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=TOP, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert orders == {(repr(ranked("x", [(name, 1.0) for name in "abcdefgh"])) + "\n").encode()}


@given(KEYS, NODES)
def test_everybody_is_ranked_once_whatever_their_order(key: str | bytes, nodes: tuple[tuple[str, float], ...]) -> None:
    order = ranked(key, nodes)
    assert sorted(order) == sorted(name for name, _ in nodes)
    assert ranked(key, nodes[::-1]) == order


@given(KEYS, NODES, st.data())
def test_the_order_of_the_others_stays_when_one_goes(
    key: str | bytes, nodes: tuple[tuple[str, float], ...], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(nodes))
    left = tuple(name for name in ranked(key, nodes) if name != gone[0])
    assert ranked(key, [node for node in nodes if node != gone]) == left
    reweighed = [(name, 0.0 if name == gone[0] else weight) for name, weight in nodes]
    assert ranked(key, reweighed) == left, "a node of weight 0 is left out"


@given(KEYS, NODES, st.data(), st.floats(1.01, 10))
def test_a_greater_weight_only_moves_a_node_forward(
    key: str | bytes, nodes: tuple[tuple[str, float], ...], data: st.DataObject, factor: float
) -> None:
    lucky, _ = data.draw(st.sampled_from(nodes))
    before = ranked(key, nodes)
    after = ranked(key, [(name, weight * factor if name == lucky else weight) for name, weight in nodes])
    assert after.index(lucky) <= before.index(lucky)
    assert [name for name in after if name != lucky] == [name for name in before if name != lucky]


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 2, 3, 4], [1, 1, 1, 1, 1, 1, 1, 1], [10, 0.5, 0.5], [0.001, 0.002]], ids=str
)
def test_shares_are_by_weight(weights: list[float]) -> None:
    """Within five standard deviations of 4,000 draws, for the first and the second place."""
    count = 4000
    nodes = [(f"upstream-{number}", weight) for number, weight in enumerate(weights)]
    orders = [ranked(f"session-{number}", nodes) for number in range(count)]
    first = Counter(order[0] for order in orders)
    total = sum(weights)
    for name, weight in nodes:
        share = weight / total
        assert abs(first[name] - count * share) <= 5 * (count * share * (1 - share)) ** 0.5, name
    heir_of = [order[1] for order in orders if order[0] == "upstream-0"]
    for name, weight in nodes[1:]:
        share = weight / (total - weights[0])
        bound = 5 * (len(heir_of) * share * (1 - share)) ** 0.5
        assert abs(heir_of.count(name) - len(heir_of) * share) <= bound, f"{name} inherits by weight"


def test_only_keys_of_the_node_that_goes_move() -> None:
    nodes = [(f"upstream-{number}", 1.0 + number) for number in range(6)]
    left = nodes[:3] + nodes[4:]
    moved: Counter[str] = Counter()
    for number in range(1000):
        key = f"session-{number}"
        before, after = ranked(key, nodes)[0], ranked(key, left)[0]
        moved[before] += before != after
    assert {name for name, keys in moved.items() if keys} == {"upstream-3"}


def test_nobody_to_choose_from() -> None:
    assert ranked("key", []) == ()
    assert ranked("key", [("alpha", 0.0), ("beta", -1.0)]) == ()

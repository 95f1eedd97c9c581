from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.complexity import Tier, complexity, tier_of

CODE = "```python\nprint()\n```"
STEPS = "1. read it\n2. mend it"
VAGUE = "Perhaps there are trade-offs"
EXPERT = "the parser has a deadlock"
LONG = "word " * 501


@pytest.mark.parametrize(
    ("prompt", "score"),
    [
        ("", 0.0),
        ("Say hello", 0.0),
        ("word " * 500, 0.0),
        (LONG, 0.3),
        (CODE, 0.2),
        ("a ``` in the middle of a line", 0.0),
        (STEPS, 0.2),
        ("1. only one", 0.0),
        (VAGUE, 0.15),
        ("perhaps, maybe, possibly", 0.0),  # three words of one sign
        (EXPERT, 0.15),
        ("a deadlock, and again a deadlock", 0.0),
        (f"{LONG}\n{CODE}\n{STEPS}\n{VAGUE}\n{EXPERT}", 1.0),
    ],
)
def test_each_sign_counts_once(prompt: str, score: float) -> None:
    assert complexity(prompt) == score


@given(st.text(max_size=2000), st.sampled_from([CODE, STEPS, VAGUE, EXPERT]))
def test_a_sign_more_never_makes_it_easier(prompt: str, sign: str) -> None:
    assert 0.0 <= complexity(prompt) <= complexity(f"{prompt}\n{sign}") <= 1.0


def test_tiers_have_the_seeds_borders() -> None:
    assert [tier_of(score) for score in (0.0, 0.39, 0.4, 0.7, 0.71, 1.0)] == [
        Tier.LOCAL,
        Tier.LOCAL,
        Tier.EITHER,
        Tier.EITHER,
        Tier.CLOUD,
        Tier.CLOUD,
    ]

"""Token counts add up class by class."""

from __future__ import annotations

from dataclasses import astuple

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.usage import TokenUsage

counts = st.integers(0, 10**9)
usages = st.builds(
    TokenUsage,
    cache_read_tokens=counts,
    cache_write_1h_tokens=counts,
    cache_write_tokens=counts,
    input_tokens=counts,
    output_tokens=counts,
    reasoning_tokens=counts,
)


@given(usages, usages)
def test_a_sum_has_the_sum_of_each_class(one: TokenUsage, two: TokenUsage) -> None:
    assert astuple(one + two) == tuple(a + b for a, b in zip(astuple(one), astuple(two), strict=True))
    assert (one + two).prompt_tokens == one.prompt_tokens + two.prompt_tokens
    assert one + TokenUsage() == one


def test_a_prompt_is_all_that_went_in() -> None:
    usage = TokenUsage(
        cache_read_tokens=1000,
        cache_write_1h_tokens=100,
        cache_write_tokens=10,
        input_tokens=1,
        output_tokens=7,
        reasoning_tokens=5,
    )
    assert usage.prompt_tokens == 1111

"""Each token is priced once; the worst case is never less than what comes; an unknown model has no price."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.price import FREE, Price, TokenRates
from coordinator.domain.usage import TokenUsage
from coordinator.policy.pricing import PriceTable, cost_usd, worst_case_usd


def price(*models: str, input_usd: float = 4.0) -> Price:
    return Price(
        models=models,
        rates=TokenRates(
            cache_read_usd=0.2, cache_write_1h_usd=8.0, cache_write_usd=5.0, input_usd=input_usd, output_usd=20.0
        ),
    )


TIERED = Price(
    long=TokenRates(cache_read_usd=0.05, cache_write_1h_usd=1.0, cache_write_usd=0.625, input_usd=0.5, output_usd=2.5),
    long_above_tokens=100_000,
    models=("haiku",),
    rates=TokenRates(cache_read_usd=0.01, cache_write_1h_usd=0.2, cache_write_usd=0.125, input_usd=0.1, output_usd=0.5),
)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (TokenUsage(input_tokens=1_000_000), 4.0),
        (TokenUsage(output_tokens=1_000_000), 20.0),
        (TokenUsage(cache_read_tokens=1_000_000), 0.2),
        (TokenUsage(cache_write_tokens=1_000_000), 5.0),
        (TokenUsage(cache_write_1h_tokens=1_000_000), 8.0),
        (TokenUsage(output_tokens=10, reasoning_tokens=10), 0.0002),
        (TokenUsage(input_tokens=1000, output_tokens=200, cache_read_tokens=40_000, cache_write_tokens=2000), 0.026),
        (TokenUsage(), 0.0),
    ],
)
def test_each_class_has_its_rate(usage: TokenUsage, usd: float) -> None:
    assert cost_usd(usage, price("m")) == pytest.approx(usd)
    assert cost_usd(usage, FREE) == 0.0


def test_a_long_prompt_makes_the_whole_call_dearer() -> None:
    short = TokenUsage(input_tokens=1, cache_read_tokens=99_999, output_tokens=1_000_000)
    longer = TokenUsage(input_tokens=2, cache_read_tokens=99_999, output_tokens=1_000_000)
    assert cost_usd(short, TIERED) == pytest.approx(0.5 + 0.00100009)
    assert cost_usd(longer, TIERED) == pytest.approx(2.5 + 0.00500095)


rates = st.floats(0, 1000)
all_rates = st.builds(
    TokenRates,
    cache_read_usd=rates,
    cache_write_1h_usd=rates,
    cache_write_usd=rates,
    input_usd=rates,
    output_usd=rates,
)
prices = st.builds(
    Price,
    long=st.none() | all_rates,
    long_above_tokens=st.integers(1, 400_000),
    models=st.just(("m",)),
    rates=all_rates,
)
tokens = st.integers(0, 200_000)


@given(prices, tokens, tokens, tokens, tokens, st.integers(0, 128_000), st.integers(0, 128_000), st.integers(0, 10_000))
def test_the_worst_case_holds(
    of: Price, plain: int, read: int, written: int, written_1h: int, out: int, unused: int, more_bytes: int
) -> None:
    usage = TokenUsage(
        cache_read_tokens=read,
        cache_write_1h_tokens=written_1h,
        cache_write_tokens=written,
        input_tokens=plain,
        output_tokens=out,
    )
    worst = worst_case_usd(usage.prompt_tokens + more_bytes, out + unused, of)
    assert cost_usd(usage, of) <= worst * (1 + 1e-12)


def test_the_worst_case_is_no_more_than_it_must_be() -> None:
    """A body that is one token a byte, all of it written to the cache for an hour."""
    usage = TokenUsage(cache_write_1h_tokens=150_000, output_tokens=32_000)
    assert worst_case_usd(150_000, 32_000, price("m")) == pytest.approx(cost_usd(usage, price("m")))
    assert worst_case_usd(150_000, 0, price("m"), tokens_per_byte=0.4) == pytest.approx(0.48)
    assert worst_case_usd(100_000, 0, TIERED) == pytest.approx(0.02)
    assert worst_case_usd(100_001, 0, TIERED) == pytest.approx(0.100001)
    cheaper = Price(long=TIERED.rates, long_above_tokens=10, models=("m",), rates=price("m").rates)
    assert worst_case_usd(1000, 0, cheaper) == pytest.approx(0.008), "it may have been ten tokens all the same"


def test_a_price_is_found_by_name_then_by_its_longest_beginning() -> None:
    exact, shorter, longer = price("opus-5"), price("opus-*"), price("opus-5-2*")
    table = PriceTable([shorter, longer, exact])
    assert table.find("opus-5") is exact
    assert table.find("opus-5-20260724") is longer
    assert table.find("opus-4") is shorter
    assert table.find("opus") is None
    assert table.find("") is None


def test_an_earlier_list_comes_before_a_better_match_of_a_later_one() -> None:
    own, shipped = price("opus-*", input_usd=1.0), price("opus-5")
    table = PriceTable([own], [shipped, price("gpt")])
    assert table.find("opus-5") is own
    assert table.find("gpt") is not None
    assert table.find("gpt-6") is None
    assert PriceTable([FREE]).find("whatever") is FREE
    assert PriceTable().find("opus-5") is None


names = st.text("ab-", max_size=5)


@given(st.lists(st.tuples(names, st.booleans()), max_size=8), names)
def test_what_is_found_is_what_a_plain_search_finds(written: list[tuple[str, bool]], model: str) -> None:
    listed = {name + "*" * open_ended: price(name + "*" * open_ended) for name, open_ended in written}
    fitting = [one for one in listed if one == model or (one.endswith("*") and model.startswith(one[:-1]))]
    best = max(fitting, key=lambda one: (one == model, len(one)), default=None)
    found = PriceTable(listed.values()).find(model)
    assert found is (listed[best] if best is not None else None)

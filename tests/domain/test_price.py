"""Lists of prices: whole and dated, or every fault is told; and the list that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

import coordinator
from coordinator.domain.errors import BadInput
from coordinator.domain.price import Price, TokenRates, price_list

SHIPPED = Path(coordinator.__file__).parent / "prices.toml"

ENTRY = """\
[[prices]]
models = ["m", "m-2*"]
as_of = "2026-11-30"
source = "s"
input = 4
output = 20.5
cache_read = 0.2
cache_write = 5
cache_write_1h = 8
[prices.long]
above_tokens = 100_000
input = 8
output = 41
"""


def faults(text: str) -> list[tuple[int, str]]:
    with pytest.raises(BadInput) as caught:
        price_list(text, "prices.toml")
    return [(problem.line, problem.key) for problem in caught.value.problems]


def test_an_entry_is_read() -> None:
    assert price_list(ENTRY, "prices.toml") == (
        Price(
            as_of="2026-11-30",
            long=TokenRates(
                cache_read_usd=8.0, cache_write_1h_usd=8.0, cache_write_usd=8.0, input_usd=8.0, output_usd=41.0
            ),
            long_above_tokens=100_000,
            models=("m", "m-2*"),
            rates=TokenRates(
                cache_read_usd=0.2, cache_write_1h_usd=8.0, cache_write_usd=5.0, input_usd=4.0, output_usd=20.5
            ),
            source="s",
        ),
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("input = 4\n", "", 1, "prices[0].input"),
        ("output = 20.5\n", "", 1, "prices[0].output"),
        ("output = 20.5", "output = -1", 6, "prices[0].output"),
        ("output = 20.5", "output = nan", 6, "prices[0].output"),
        ("output = 20.5", 'output = "20"', 6, "prices[0].output"),
        ("cache_read = 0.2", "cache_reed = 0.2", 7, "prices[0].cache_reed"),
        ('models = ["m", "m-2*"]', "models = []", 2, "prices[0].models"),
        ('models = ["m", "m-2*"]\n', "", 1, "prices[0].models"),
        ('"m-2*"', '"m*2"', 2, "prices[0].models[1]"),
        ('"m-2*"', '""', 2, "prices[0].models[1]"),
        ('"m-2*"', '"m"', 2, "prices[0].models[1]"),
        ('"2026-11-30"', '"30.11.2026"', 3, "prices[0].as_of"),
        ('as_of = "2026-11-30"\n', "", 1, "prices[0].as_of"),
        ('source = "s"\n', "", 1, "prices[0].source"),
        ("above_tokens = 100_000\n", "", 10, "prices[0].long.above_tokens"),
        ("above_tokens = 100_000", "above_tokens = 0", 11, "prices[0].long.above_tokens"),
        ("output = 41\n", "", 10, "prices[0].long.output"),
        ("[prices.long]", "[prices.longer]", 10, "prices[0].longer"),
        ("[[prices]]", "[[price]]", 1, "price"),
        ("[[prices]]", "[[prices", 1, ""),
    ],
)
def test_what_is_no_price_is_told_with_line_and_key(old: str, new: str, line: int, key: str) -> None:
    assert old in ENTRY
    assert (line, key) in faults(ENTRY.replace(old, new, 1))


def test_all_faults_are_told_at_once() -> None:
    broken = ENTRY.replace("input = 4", "input = -4").replace('source = "s"\n', "")
    assert faults(broken + broken) == [
        (1, "prices[0].source"),
        (4, "prices[0].input"),
        (13, "prices[1].source"),
        (14, "prices[1].models[0]"),
        (14, "prices[1].models[1]"),
        (16, "prices[1].input"),
    ]


LATER = ENTRY.partition("[prices.long]")[0] + '[prices.later]\nfrom = "2027-01-01"\ninput = 8\noutput = 41\n'


def test_a_price_that_was_announced_holds_from_its_day_on() -> None:
    (price,) = price_list(LATER, "prices.toml")
    before = price.on("2026-12-31")
    assert (before.rates.input_usd, before.rates.cache_write_1h_usd) == (4.0, 8.0)
    for day in ("2027-01-01", "2030-06-01"):
        after = price.on(day)
        assert (after.rates.input_usd, after.rates.output_usd, after.rates.cache_read_usd) == (8.0, 41.0, 8.0)
        assert (after.models, after.on("2026-01-01")) == (price.models, after)


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ('from = "2027-01-01"\n', "", 10, "prices[0].later.from"),
        ('from = "2027-01-01"', 'from = "soon"', 11, "prices[0].later.from"),
        ("output = 41\n", "", 10, "prices[0].later.output"),
        ("output = 41", "output = 41\nabove_tokens = 1", 14, "prices[0].later.above_tokens"),
        (
            "[prices.later]",
            "[prices.long]\nabove_tokens = 9\ninput = 9\noutput = 9\n[prices.later]",
            14,
            "prices[0].later",
        ),
    ],
)
def test_what_is_no_later_price_is_told(old: str, new: str, line: int, key: str) -> None:
    assert (line, key) in faults(LATER.replace(old, new, 1))


def test_the_list_that_ships_is_whole() -> None:
    prices = price_list(SHIPPED.read_text(encoding="utf-8"), "prices.toml")
    by_model = {model: price for price in prices for model in price.models}
    opus = by_model["claude-opus-5-5"].rates
    assert (opus.input_usd, opus.output_usd, opus.cache_read_usd, opus.cache_write_usd) == (4.0, 20.0, 0.2, 5.0)
    for price in prices:
        if not price.rates.output_usd:  # vectors are no output
            assert 0 < price.rates.input_usd == price.rates.cache_read_usd
            continue
        for rates in (price.rates, price.long or price.rates, price.later or price.rates):
            assert 0 < rates.cache_read_usd < rates.input_usd <= rates.cache_write_usd <= rates.cache_write_1h_usd
            assert rates.input_usd < rates.output_usd
        if price.long is not None:
            assert price.rates.input_usd < price.long.input_usd
            assert price.rates.output_usd < price.long.output_usd


def test_what_ships_stands_for_dated_snapshots_only() -> None:
    """``gpt-5.4-2*`` is ``gpt-5.4-2026-03-05`` and not some ``gpt-5.4-mini``."""
    prices = price_list(SHIPPED.read_text(encoding="utf-8"), "prices.toml")
    beginnings = {model for price in prices for model in price.models if model.endswith("*")}
    names = {model for price in prices for model in price.models if not model.endswith("*")}
    assert [(name, one) for name in names for one in beginnings if name.startswith(one[:-1])] == []

"""What a model costs here: the nearest list first, and as it is on the day."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.domain.price import FREE, Price, TokenRates
from coordinator.domain.settings import GatewaySettings
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.prices import Prices

OWN = Price(
    models=("gemini-3.8-flash",),
    rates=TokenRates(cache_read_usd=9, cache_write_1h_usd=9, cache_write_usd=9, input_usd=9, output_usd=9),
)


def station(*prices: Price) -> Any:
    settings = UpstreamSettings(kind=UpstreamKind.GOOGLE, name=f"up-{len(prices)}", prices=prices)
    return SimpleNamespace(name=settings.name, upstream=SimpleNamespace(settings=settings))


def test_a_price_changes_on_its_day_without_a_restart() -> None:
    prices = Prices(GatewaySettings(), date(2026, 12, 31))

    def now() -> tuple[float, float, float]:
        found = prices.of(station(), "gemini-3.8-flash")
        assert found is not None
        return found.rates.input_usd, found.rates.output_usd, found.rates.cache_read_usd

    assert now() == (0.75, 3.75, 0.075)
    prices.roll_over(date(2026, 12, 31))
    assert now() == (0.75, 3.75, 0.075)
    prices.roll_over(date(2027, 1, 1))
    assert now() == (1.5, 7.5, 0.15)


@pytest.mark.parametrize("today", [date(2026, 12, 1), date(2027, 2, 1)])
def test_what_is_said_nearer_comes_first_on_any_day(today: date) -> None:
    assert Prices(GatewaySettings(prices=(OWN,)), today).of(station(FREE), "gemini-3.8-flash") is FREE
    assert Prices(GatewaySettings(prices=(OWN,)), today).of(station(), "gemini-3.8-flash") is OWN
    assert Prices(GatewaySettings(), today).of(station(), "gemini-of-nowhere") is None

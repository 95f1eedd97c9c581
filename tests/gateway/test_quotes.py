"""Before a call is made: what a model costs, whether it can be reached, and where a call goes whose upstream was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest

from coordinator.domain.price import Price, TokenRates
from coordinator.domain.settings import GatewaySettings
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.calls import Call
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.quotes import PriceQuotes, barred_arms
from coordinator.gateway.routing import Routes
from coordinator.gateway.upstream import Upstream, upstreams_of


def price(model: str, usd: float) -> Price:
    rates = TokenRates(cache_read_usd=usd, cache_write_1h_usd=usd, cache_write_usd=usd, input_usd=usd, output_usd=usd)
    return Price(models=(model,), rates=rates)


def described(name: str, *models: str, usd: float | None = None) -> UpstreamSettings:
    prices = (price("*", usd),) if usd is not None else ()
    url = f"http://127.0.0.1/{name}"
    return UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name=name, models=models, prices=prices, url=url)


def known(*upstreams: UpstreamSettings) -> tuple[Upstream, ...]:
    return upstreams_of(GatewaySettings(upstreams=upstreams), {}).known


def test_a_quote_is_the_price_where_the_call_would_go() -> None:
    settings = GatewaySettings(prices=(price("m", 2.0),), aliases={"short": "m"})
    quotes = PriceQuotes(
        settings, known(described("one", "m"), described("two", "m-*", usd=7.0)), lambda: date(2026, 1, 1)
    )

    def usd(*asked: str) -> float | None:
        found = quotes.of(*asked)
        return found.rates.input_usd if found is not None else None

    assert (usd("m"), usd("short"), usd("m", "one")) == (2.0, 2.0, 2.0)
    assert (usd("m", "two"), usd("m-large")) == (7.0, 7.0)
    assert usd("nobody-knows-it") is None
    nowhere = PriceQuotes(settings, (), lambda: date(2026, 1, 1))
    assert nowhere.of("m") is not None, "the settings' own list holds without any upstream"


@pytest.mark.parametrize(
    ("breakers", "held_by", "barred"),
    [
        ([], "", ()),
        ([{"model": "m"}], "", ("m via one",)),
        ([{"model": "other"}], "", ()),
        ([], "paused: by hand", ("m via one",)),
        ([], "limit", ()),
    ],
)
def test_an_arm_is_barred_when_nobody_takes_its_model(
    breakers: list[Any], held_by: str, barred: tuple[str, ...]
) -> None:
    one = {"name": "one", "models": ["m"], "breakers": breakers, "held_by": held_by}
    two = {"name": "two", "models": ["m*"], "breakers": [], "held_by": ""}
    assert barred_arms(["m via one", "m", "m via two", "unheard-of"], [one, two], {}) == barred


def test_an_alias_is_barred_with_what_it_means() -> None:
    one = {"name": "one", "models": ["m"], "breakers": [{"model": "m"}], "held_by": ""}
    assert barred_arms(["short"], [one], {"short": "m"}) == ("short",)


@dataclass(frozen=True)
class Place:
    """What routing asks of a station."""

    upstream: Upstream

    @property
    def name(self) -> str:
        return self.upstream.name


@pytest.mark.parametrize("chosen", ["one", "two", "three"])
def test_a_call_tries_the_upstream_that_was_chosen_first(chosen: str) -> None:
    places = [Place(one) for one in known(*(described(name, "m") for name in ("one", "two", "three")))]
    routes = Routes(places, {})  # type: ignore[arg-type]
    for number in range(20):
        call = Call(("t", 1), Claimant(upstream=chosen), Dialect.ANTHROPIC_MESSAGES, "/v1/messages", 0.0)
        call.id, call.model = str(number), "m"
        found = [place.name for place in routes.candidates(call, b"session")]
        assert found[0] == chosen
        assert sorted(found) == ["one", "three", "two"], "the others stay, for when it fails"

"""What models cost here: what the settings say of an upstream or of all, else the list that ships.

Owns one invariant: a price comes from one of three lists, the nearest first, as it is on this day, or there is none.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from coordinator.domain.price import price_list
from coordinator.policy.pricing import PriceTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from coordinator.domain.price import Price
    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.station import Station

FILE: Final = "prices.toml"
_KNOWN: Final = 1000


class Prices:
    """By upstream and model. ``today`` is of the day (UTC) that prices are for, until ``roll_over``."""

    def __init__(self, settings: GatewaySettings, today: date) -> None:
        self._today = today.isoformat()
        text = files("coordinator").joinpath(FILE).read_text(encoding="utf-8")
        self._common = (settings.prices, price_list(text, FILE))
        self._found: dict[tuple[str, str], Price | None] = {}
        self._tables: dict[str, PriceTable] = {}

    def of(self, station: Station, model: str) -> Price | None:
        """None: nobody has told."""
        return self.at(station.name, station.upstream.settings.prices, model)

    def at(self, name: str, own: Sequence[Price], model: str) -> Price | None:
        """At the upstream of that ``name``, whose settings have prices of their ``own``."""
        key = name, model
        if key not in self._found:
            if len(self._found) >= _KNOWN:
                self._found.clear()
            table = self._tables.get(name)
            if table is None:
                table = self._tables[name] = PriceTable(own, *self._common)
            price = table.find(model)
            self._found[key] = price.on(self._today) if price is not None else None
        return self._found[key]

    def dearest(self, stations: Sequence[Station], model: str) -> Price | None:
        """What is set aside for a call that may come to any of them. None: nobody has told for the first."""
        first = self.of(stations[0], model)
        if first is None or len(stations) == 1:
            return first
        known = [price for one in stations if (price := self.of(one, model)) is not None]
        return max(known, key=lambda price: (price.rates.output_usd, price.rates.input_usd))

    def roll_over(self, today: date) -> None:
        """It is that day; some prices change at one."""
        if today.isoformat() != self._today:
            self._today = today.isoformat()
            self._found.clear()

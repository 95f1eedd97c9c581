"""What a model costs and whether it can be reached, asked before any call is made: by who chooses between models.

Owns one invariant: the answer is the one that a call would be priced by. It knows no call; ``prices`` does the looking up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.gateway.prices import Prices
from coordinator.gateway.routing import closeness
from coordinator.policy.routing import VIA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import date

    from coordinator.domain.price import Price
    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.upstream import Upstream


class PriceQuotes:
    """``today`` is asked for each time: some prices change at a day."""

    def __init__(self, settings: GatewaySettings, known: Sequence[Upstream], today: Callable[[], date]) -> None:
        self._known = known
        self._prices: Prices | None = None
        self._settings = settings
        self._today = today

    def of(self, model: str, upstream: str = "") -> Price | None:
        """At that upstream, or at the one whose settings name the model most closely. None: nobody has told."""
        if self._prices is None:
            self._prices = Prices(self._settings, self._today())
        self._prices.roll_over(self._today())
        meant = self._settings.aliases.get(model, model)
        named = [one for one in self._known if one.name == upstream]
        closest = max(self._known, key=lambda one: closeness(one.settings.models, meant), default=None)
        there = named[0] if named else closest
        return self._prices.at(there.name if there else "", there.settings.prices if there else (), meant)


def barred_arms(
    names: Iterable[str], standing: Sequence[Mapping[str, Any]], aliases: Mapping[str, str]
) -> tuple[str, ...]:
    """Arms that no upstream takes just now. ``standing``: what each of them says of itself."""
    barred = []
    for name in names:
        model, _, upstream = name.partition(VIA)
        meant = aliases.get(model, model)
        places = [
            one
            for one in standing
            if (not upstream or one["name"] == upstream) and closeness(one["models"], meant) >= 0
        ]
        if places and all(_is_away(one, meant) for one in places):
            barred.append(name)
    return tuple(barred)


def _is_away(place: Mapping[str, Any], model: str) -> bool:
    return str(place["held_by"]).startswith("paused") or any(one["model"] == model for one in place["breakers"])

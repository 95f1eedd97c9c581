"""The share of choices that is made at random, so that what is never chosen can still be known, and the choice itself.

Owns one invariant: probabilities that come out are none below the floor, sum to one, and are the ones that the choice is
really made with; without that no other policy can be judged by what was seen. Chance comes in as an argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_USD = 0.001
"""An arm that costs nothing is tried as often as one that costs this."""


class Chance(Protocol):
    """What is asked of a source of chance (``random.Random`` is one)."""

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float: ...
    def random(self) -> float: ...


def floors(costs_usd: Sequence[float], share: float) -> tuple[float, ...]:
    """How ``share`` is dealt out: to each by one over what it costs, so that finding out is cheap."""
    weights = [1.0 / max(cost, _LEAST_USD) for cost in costs_usd]
    total = sum(weights)
    return tuple(share * weight / total for weight in weights)


def with_floor(preferred: Sequence[float], costs_usd: Sequence[float], share: float) -> tuple[float, ...]:
    """``preferred`` (which sum to one) for all but ``share``. One arm alone has probability 1."""
    if len(preferred) == 1:
        return (1.0,)
    mixed = [(1.0 - share) * one + least for one, least in zip(preferred, floors(costs_usd, share), strict=True)]
    total = sum(mixed)
    return tuple(one / total for one in mixed)


def drawn(probabilities: Sequence[float], chance: float) -> int:
    """Which one; ``chance`` is uniform in [0, 1)."""
    for number, probability in enumerate(probabilities):
        chance -= probability
        if chance < 0:
            return number
    return max(
        number for number, probability in enumerate(probabilities) if probability > 0
    )  # the sum was rounded down

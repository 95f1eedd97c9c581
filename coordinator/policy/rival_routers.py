"""Routers to compare the learned one with, or to choose instead of it: LinUCB, epsilon-greedy, and the first of the list.

Owns one invariant: each says the probabilities that it really chooses with, so that what they chose can be judged later,
too. LinUCB (Li et al. 2010) is linear where landing is not, and looks at one attempt; epsilon-greedy keeps a mean for each
kind and size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from coordinator.policy.belief import Belief, Weight
from coordinator.policy.exploration import with_floor
from coordinator.policy.learned_router import LearnedRouter
from coordinator.policy.routing import net_usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.policy.exploration import Chance
    from coordinator.policy.routing import Arm, RoutingContext, RoutingPolicy

POLICIES: Final = ("thompson", "linucb", "epsilon_greedy", "first")
"""By name, as ``[router] policy`` says them."""

_OPTIMISM: Final = 0.4
"""Deviations that LinUCB gives an arm for being unknown."""
_NOISE: Final = 0.2
_START: Final = 0.1
_DECAY: Final = 0.995
_LEAST: Final = 0.01
"""Epsilon at first, after each outcome, and at last: the seed's."""


def policy_named(name: str, *, drift: float, floor: float) -> RoutingPolicy:
    """``name`` is one of ``POLICIES``."""
    match name:
        case "thompson":
            return LearnedRouter(drift=drift, floor=floor)
        case "linucb":
            return LinUcbRouter(floor=floor)
        case "epsilon_greedy":
            return EpsilonRouter(floor=floor)
        case _:
            return FirstRouter()


class FirstRouter:
    """What stands first, each time."""

    seen = 0

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]:
        return (1.0, *([0.0] * (len(arms) - 1)))

    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None:
        self.seen += 1

    def to_json(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.seen = int(data["seen"])


class LinUcbRouter:
    """The chance of landing as a sum of weights, with an upper bound on what is not known."""

    def __init__(self, *, floor: float = 0.02, optimism: float = _OPTIMISM) -> None:
        self._belief = Belief()
        self._floor = floor
        self._optimism = optimism
        self.seen = 0

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]:
        def bound(arm: Arm) -> float:
            weights = self._weights(context, arm)
            hoped = self._belief.mean(weights) + self._optimism * math.sqrt(self._belief.variance(weights))
            return context.value_usd * hoped - arm.cost_usd - arm.delay_usd

        best = max(range(len(arms)), key=lambda number: bound(arms[number]))
        return with_floor(_only(best, len(arms)), [arm.cost_usd for arm in arms], self._floor)

    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None:
        self._belief.measure(self._weights(context, arm), float(landed), _NOISE)
        self.seen += 1

    def to_json(self) -> dict[str, Any]:
        return {"belief": self._belief.to_json(), "seen": self.seen}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Raises ``KeyError``, ``ValueError`` or ``IndexError`` for what is none of ours."""
        self._belief = Belief.from_json(data["belief"])
        self.seen = int(data["seen"])

    @staticmethod
    def _weights(context: RoutingContext, arm: Arm) -> list[Weight]:
        kind, size, name = context.kind, context.size, arm.name
        weights = [
            Weight("one", 0.5, 0.3),
            Weight(f"arm {name}", 0.0, 0.3),
            Weight(f"kind {kind}", 0.0, 0.3),
            Weight(f"size {size}", 0.0, 0.2),
            Weight(f"arm {name}, kind {kind}", 0.0, 0.2),
            Weight(f"arm {name}, kind {kind}, size {size}", 0.0, 0.2),
        ]
        if context.attempt:
            weights.append(Weight(f"retry {min(context.attempt, 2)}", 0.0, 0.2))
        if context.previous == name:
            weights.append(Weight("same arm", 0.0, 0.2))
        return weights


class EpsilonRouter:
    """The best mean net of a kind and size so far, and anything now and then."""

    def __init__(self, *, floor: float = 0.02) -> None:
        self._floor = floor
        self._sums: dict[str, tuple[float, int]] = {}
        self.epsilon = _START
        self.seen = 0

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]:
        best = max(range(len(arms)), key=lambda number: self._mean(context, arms[number]))
        even = self.epsilon / len(arms)
        mixed = [(1.0 - self.epsilon) * one + even for one in _only(best, len(arms))]
        return with_floor(mixed, [arm.cost_usd for arm in arms], self._floor)

    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None:
        key = self._key(context, arm)
        total, count = self._sums.get(key, (0.0, 0))
        self._sums[key] = total + net_usd(context, arm, landed), count + 1
        self.epsilon = max(self.epsilon * _DECAY, _LEAST)
        self.seen += 1

    def to_json(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "seen": self.seen, "sums": self._sums}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Raises ``KeyError`` or ``ValueError`` for what is none of ours."""
        self._sums = {str(key): (float(total), int(count)) for key, (total, count) in data["sums"].items()}
        self.epsilon = float(data["epsilon"])
        self.seen = int(data["seen"])

    def _mean(self, context: RoutingContext, arm: Arm) -> float:
        total, count = self._sums.get(self._key(context, arm), (0.0, 0))
        return total / count if count else context.value_usd / 2 - arm.cost_usd - arm.delay_usd

    @staticmethod
    def _key(context: RoutingContext, arm: Arm) -> str:
        return f"{arm.name}, {context.kind}, {context.size}"


def _only(number: int, count: int) -> list[float]:
    return [float(one == number) for one in range(count)]

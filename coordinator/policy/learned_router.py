"""The learned router: which model, at which upstream, an attempt is given, by what became of those before it.

Owns one invariant: it only ever chooses among the arms it is handed, with the probabilities it says. Bayesian logistic
Thompson sampling (Chapelle and Li 2011): the log-odds of landing are a sum of weights, one Gaussian over all of them. A
draw is worth p·value − cost + (1 − p)·(the best that a further attempt is worth), so a cheap arm first and a dear one
after it is learnt where it pays. Its prior says that what is dearer lands more; drift lets it forget. It is told only of
outcomes: a refused budget and a broken gate are none.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.policy.belief import Belief, Weight, logistic
from coordinator.policy.exploration import with_floor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.policy.exploration import Chance
    from coordinator.policy.routing import Arm, RoutingContext

DRAWS: Final = 64
"""Draws that one choice is made from: its probability of an arm is how many of them it won."""
_WIDTH: Final = (0.3, 0.4, 500.0)
"""Draws are 0.3 + 0.4·exp(−outcomes / 500) of a standard deviation wide: wide while nothing is known, or a fleet stays with what
its prior likes; narrow later, or drift makes it explore for ever (``scripts/bench control``, seeds for tuning)."""

_CHEAP_USD: Final = 0.03
_MOST_LOG_RATIO: Final = 4.1
_ARM: Final = (0.4, 0.5, 2.05, 0.8)
"""Mean 0.4 + 0.5·(ln(price ratio) − 2.05), deviation 0.8."""
_ARM_VARIANCE: Final = 1.0
"""Nothing of an arm is less certain than this, however long it was left alone."""
_KIND: Final = MappingProxyType({"lint": 1.5, "upgrade": 0.7, "bug": -0.6, "feature": -1.5})
_KIND_DEVIATION: Final = 0.5
_SIZE: Final = MappingProxyType({"small": 0.4, "medium": 0.0, "large": -0.6})
_SIZE_DEVIATION: Final = 0.3
_RETRY: Final = (Weight("retry 1", -0.5, 0.4), Weight("retry 2", -0.8, 0.4))
_SAME: Final = Weight("same arm", -0.4, 0.4)
_ARM_KIND_DEVIATION: Final = 0.4
_CELL_DEVIATION: Final = 0.45
_FAR: Final = 200.0
_FURTHEST: Final = 2
"""Further attempts are like the third one."""


class LearnedRouter:
    """``drift`` is in squared log-odds an hour, ``floor`` the share of choices made by price alone."""

    def __init__(self, *, cells: bool = True, drift: float = 0.016, floor: float = 0.02) -> None:
        self._belief = Belief()
        self._cells = cells
        self._arms: dict[str, None] = {}
        self._drift = drift
        self._floor = floor
        self._now_h: float | None = None
        self.seen = 0

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]:
        """The probability of each arm. Who draws by them draws from the belief, and knows with what probability."""
        if len(arms) == 1:
            return (1.0,)
        self._pass_time(now_h)
        for arm in arms:
            self._arms.setdefault(arm.name)
        means, triangle = self._belief.joint([*(self._base(context, arm) for arm in arms), *([one] for one in _EXTRA)])
        size, plan = len(means), _Plan(context, arms)
        narrow, more, fading = _WIDTH
        width = narrow + more * math.exp(-self.seen / fading)
        won = [0] * len(arms)
        for _ in range(DRAWS):
            normals = [chance.gauss(0.0, width) for _ in range(size)]
            drawn = [
                mean + sum(a * b for a, b in zip(row, normals, strict=False))
                for mean, row in zip(means, triangle, strict=True)
            ]
            won[plan.best(drawn)] += 1
        return with_floor([one / DRAWS for one in won], [arm.cost_usd for arm in arms], self._floor)

    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None:
        """It landed, or it did not by its own fault."""
        self._pass_time(now_h)
        self._arms.setdefault(arm.name)
        self._belief.see(self._weights(context, arm), landed)
        self.seen += 1

    def expected(self, context: RoutingContext, arm: Arm) -> tuple[float, float]:
        """The probability that an attempt lands at the mean of the belief, and the deviation of its log-odds."""
        weights = self._weights(context, arm)
        return logistic(self._belief.mean(weights)), math.sqrt(self._belief.variance(weights))

    def to_json(self) -> dict[str, Any]:
        return {"arms": list(self._arms), "belief": self._belief.to_json(), "now_h": self._now_h, "seen": self.seen}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Raises ``KeyError``, ``ValueError`` or ``IndexError`` for what is none of ours."""
        belief = Belief.from_json(data["belief"])
        self._arms = dict.fromkeys(str(name) for name in data["arms"])
        self._belief = belief
        self._now_h = None if data["now_h"] is None else float(data["now_h"])
        self.seen = int(data["seen"])

    def _pass_time(self, now_h: float) -> None:
        if self._now_h is not None and now_h > self._now_h:
            for name in self._arms:
                self._belief.widen(f"arm {name}", self._drift * (now_h - self._now_h), _ARM_VARIANCE)
        self._now_h = max(now_h, self._now_h if self._now_h is not None else now_h)

    def _base(self, context: RoutingContext, arm: Arm) -> list[Weight]:
        kind, size = context.kind, context.size
        level, slope, middle, deviation = _ARM
        ratio = min(max(math.log(max(arm.list_usd, 1e-9) / _CHEAP_USD), 0.0), _MOST_LOG_RATIO)
        weights = [
            Weight(f"arm {arm.name}", level + slope * (ratio - middle), deviation),
            Weight(f"kind {kind}", _KIND.get(kind, 0.0), _KIND_DEVIATION),
            Weight(f"size {size}", _SIZE.get(size, 0.0), _SIZE_DEVIATION),
            Weight(f"arm {arm.name}, kind {kind}", 0.0, _ARM_KIND_DEVIATION),
        ]
        if self._cells:
            weights.append(Weight(f"arm {arm.name}, kind {kind}, size {size}", 0.0, _CELL_DEVIATION))
        return weights

    def _weights(self, context: RoutingContext, arm: Arm) -> list[Weight]:
        weights = self._base(context, arm)
        if context.attempt:
            weights.append(_RETRY[min(context.attempt, _FURTHEST) - 1])
        if context.previous == arm.name:
            weights.append(_SAME)
        return weights


_EXTRA: Final = (*_RETRY, _SAME)


class _Plan:
    """What arms are worth with all attempts that are left, given log-odds."""

    def __init__(self, context: RoutingContext, arms: Sequence[Arm]) -> None:
        self._costs = [arm.cost_usd + arm.delay_usd for arm in arms]
        self._first = context.attempt
        self._last = context.attempt + min(context.left, _FURTHEST + 1) - 1
        self._previous = next((n for n, arm in enumerate(arms) if arm.name == context.previous), -1)
        self._value = context.value_usd

    def best(self, drawn: Sequence[float]) -> int:
        """``drawn``: the log-odds of each arm at a first attempt, then what the retries and the same arm again add."""
        count, kept = len(self._costs), [min(max(one, -_FAR), _FAR) for one in drawn]
        arms, retries, same = kept[:count], (0.0, *kept[count:-1]), kept[-1]
        after = [0.0] * count
        for attempt in range(self._last, self._first, -1):
            retry = retries[min(attempt, _FURTHEST)]
            fresh = self._worths([odds + retry for odds in arms], after)
            again = self._worths([odds + retry + same for odds in arms], after)
            top, second = _two_best(fresh)
            after = [max(second if n == top[1] else top[0], again[n]) for n in range(count)]
        retry = retries[min(self._first, _FURTHEST)]
        odds = [one + retry + (same if n == self._previous else 0.0) for n, one in enumerate(arms)]
        worths = self._worths(odds, after)
        return worths.index(max(worths))

    def _worths(self, odds: Sequence[float], after: Sequence[float]) -> list[float]:
        """Of an attempt with each arm: what it brings, less its cost, and what follows when it does not land."""
        value, exp, found = self._value, math.exp, []
        for one, cost, rest in zip(odds, self._costs, after, strict=True):
            p = 1.0 / (1.0 + exp(-one))
            found.append(p * value - cost + (1.0 - p) * rest)
        return found


def _two_best(values: Sequence[float]) -> tuple[tuple[float, int], float]:
    """The largest and where it is, and the largest of the others."""
    top = max(values)
    at = values.index(top)
    return (top, at), max((one for n, one in enumerate(values) if n != at), default=-math.inf)

"""What another policy would have brought, from what was chosen and with which probabilities: doubly robust, with an interval.

Owns one invariant: it never says which is better when the data cannot tell. Dudík, Langford and Li (2011): a model of each arm's
net, corrected by what was really seen wherever the other policy would have chosen the same, weighted by one over the
probability. The model of a decision is made without that decision's own part of the data, the weights are not clipped,
and where nothing was left to chance there is no evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Z: Final = 1.96
"""95 %."""
_LEAST: Final = 30
"""Decisions, and what the weights leave of them (effective sample size), below which nothing is said."""
_BELIEVED: Final = 5.0
_PARTS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedChoice:
    """One decision: ``propensities`` of the arms it was made with, those ``other`` would have used, the net in USD of the one
    ``arm`` that was taken. ``cell`` is what is alike for the model of nets, ``costs`` are what each arm would have cost."""

    arm: str
    cell: str
    costs: Mapping[str, float]
    net_usd: float
    other: Mapping[str, float]
    propensities: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEstimate:
    """USD a decision: what was got (``was_usd``), what the other policy is thought to bring (``other_usd``) and the difference,
    each with half the width of its 95 % interval. ``effective``: decisions that the weights leave. ``why`` is empty, or
    says why nothing can be told."""

    decisions: int
    difference_half_usd: float = 0.0
    difference_usd: float = 0.0
    effective: float = 0.0
    other_half_usd: float = 0.0
    other_usd: float = 0.0
    was_usd: float = 0.0
    why: str = ""


def evaluate(choices: Sequence[LoggedChoice]) -> PolicyEstimate:
    """Doubly robust, two-fold cross-fitted."""
    count = len(choices)
    if count < _LEAST:
        return PolicyEstimate(decisions=count, why=f"{count} decisions have an outcome, at least {_LEAST} are wanted")
    unseen = sum(one.other.get(arm, 0.0) > 0 for one in choices for arm in one.other if not one.propensities.get(arm))
    if unseen:
        return PolicyEstimate(
            decisions=count,
            why="it would choose what was never left to chance here; a floor above 0 in [router] is what makes it comparable",
        )
    models = [_GainModel(choices, part) for part in range(_PARTS)]
    weights, values = [], []
    for number, one in enumerate(choices):
        model = models[number % _PARTS]
        expected = sum(chance * model.net(one, arm) for arm, chance in one.other.items() if chance)
        weight = one.other.get(one.arm, 0.0) / one.propensities[one.arm]
        weights.append(weight)
        values.append(expected + weight * (one.net_usd - model.net(one, one.arm)))
    return _estimate([one.net_usd for one in choices], values, weights)


class _GainModel:
    """Mean gain (net and cost together) by arm and cell, made without one part of the data, drawn towards the arm's mean."""

    def __init__(self, choices: Sequence[LoggedChoice], part: int) -> None:
        self._arms: dict[str, tuple[float, int]] = {}
        self._cells: dict[tuple[str, str], tuple[float, int]] = {}
        used = [one for number, one in enumerate(choices) if number % _PARTS != part]
        for one in used:
            gain, cell = one.net_usd + one.costs[one.arm], (one.arm, one.cell)
            sums, seen = self._arms.get(one.arm, (0.0, 0))
            self._arms[one.arm] = sums + gain, seen + 1
            sums, seen = self._cells.get(cell, (0.0, 0))
            self._cells[cell] = sums + gain, seen + 1
        self._all = sum(sums for sums, _ in self._arms.values()) / max(len(used), 1)

    def net(self, one: LoggedChoice, arm: str) -> float:
        sums, seen = self._arms.get(arm, (0.0, 0))
        usual = (sums + _BELIEVED * self._all) / (seen + _BELIEVED)
        sums, seen = self._cells.get((arm, one.cell), (0.0, 0))
        return (sums + _BELIEVED * usual) / (seen + _BELIEVED) - one.costs[arm]


def _estimate(was: Sequence[float], values: Sequence[float], weights: Sequence[float]) -> PolicyEstimate:
    count = len(was)
    effective = sum(weights) ** 2 / sum(one * one for one in weights) if any(weights) else 0.0
    difference = [other - one for other, one in zip(values, was, strict=True)]
    middle, half = _interval(difference)
    why = ""
    if effective < _LEAST:
        why = f"too few decisions were what it would have chosen: they weigh as much as {effective:.0f}, {_LEAST} are wanted"
    elif abs(middle) <= half:
        why = "the difference may as well be chance"
    other, other_half = _interval(values)
    return PolicyEstimate(
        decisions=count,
        difference_half_usd=half,
        difference_usd=middle,
        effective=effective,
        other_half_usd=other_half,
        other_usd=other,
        was_usd=sum(was) / count,
        why=why,
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    mean = sum(values) / count
    return mean, Z * math.sqrt(sum((one - mean) ** 2 for one in values) / (count - 1) / count)

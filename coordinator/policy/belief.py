"""What is believed of named weights: one Gaussian over all of them, moved by one observation at a time.

Owns one invariant: the covariance stays symmetric and positive, so no observation makes anything less certain than it was;
only time does (``widen``). An observation is about a sum of weights: whether something happened (logistic) or how large it
was (linear). A rank-1 step for each, the mode of a Laplace approximation found along the one direction that can move
(Spiegelhalter and Lauritzen 1990). It draws nothing: chance stays with who asks for ``joint``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STEPS = 30
_CLOSE = 1e-9


class Weight(NamedTuple):
    """One term of a sum, and what is believed of it before anything was seen."""

    name: str
    mean: float
    deviation: float


class Belief:
    """Weights come into being when they are first named."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._means: list[float] = []
        self._covariance: list[list[float]] = []

    def mean(self, weights: Iterable[Weight]) -> float:
        """Of their sum."""
        return sum(self._means[self._at(weight)] for weight in weights)

    def variance(self, weights: Iterable[Weight]) -> float:
        """Of their sum."""
        at = [self._at(weight) for weight in weights]
        return max(sum(self._covariance[i][j] for i in at for j in at), 0.0)

    def joint(self, sums: Sequence[Sequence[Weight]]) -> tuple[list[float], list[list[float]]]:
        """Means of several sums, and the lower triangle that a vector of independent standard normals is multiplied with to
        give their joint deviations (Cholesky)."""
        rows = [[self._at(weight) for weight in weights] for weights in sums]
        means = [sum(self._means[i] for i in row) for row in rows]
        covariance, triangle = self._covariance, list[list[float]]()
        for number, row in enumerate(rows):
            line: list[float] = []
            for other in range(number + 1):
                together = sum(covariance[i][j] for i in row for j in rows[other])
                before = triangle[other] if other < number else line
                left = together - sum(a * b for a, b in zip(line, before, strict=False))
                if other == number:
                    line.append(math.sqrt(max(left, 0.0)))
                else:
                    line.append(left / before[other] if before[other] > _CLOSE else 0.0)
            triangle.append(line)
        return means, triangle

    def see(self, weights: Sequence[Weight], happened: bool) -> None:
        """It happened, or not, with the odds that the sum is the logarithm of."""
        at = [self._at(weight) for weight in weights]
        along, variance = self._along(at)
        prior = sum(self._means[i] for i in at)
        mode, target = prior, 1.0 if happened else 0.0
        low, high = (prior, prior + variance) if happened else (prior - variance, prior)
        for _ in range(_STEPS):
            chance = logistic(mode)
            fault = mode - prior - variance * (target - chance)
            low, high = (low, mode) if fault > 0 else (mode, high)
            step = mode - fault / (1.0 + variance * chance * (1.0 - chance))
            step = step if low <= step <= high else (low + high) / 2
            if abs(step - mode) < _CLOSE:
                break
            mode = step
        chance = logistic(mode)
        curve = chance * (1.0 - chance)
        self._move(along, target - chance, curve / (1.0 + curve * variance))

    def measure(self, weights: Sequence[Weight], value: float, noise: float) -> None:
        """The sum was ``value``, give or take a normal error of variance ``noise``."""
        at = [self._at(weight) for weight in weights]
        along, variance = self._along(at)
        share = 1.0 / (variance + noise)
        self._move(along, (value - sum(self._means[i] for i in at)) * share, share)

    def widen(self, name: str, variance: float, most: float) -> None:
        """Time has passed: what is known of one weight gets ``variance`` less certain, up to ``most``. Unknown names are left."""
        at = self._index.get(name)
        if at is not None:
            row = self._covariance[at]
            row[at] += min(max(variance, 0.0), max(most - row[at], 0.0))

    def deviation(self, name: str) -> float:
        """Of one weight; 0 when it was never named."""
        at = self._index.get(name)
        return math.sqrt(self._covariance[at][at]) if at is not None else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, with nine significant digits; the covariance's lower triangle without its zeros."""
        cells = {
            f"{i} {j}": float(f"{self._covariance[i][j]:.9g}")
            for i in range(len(self._means))
            for j in range(i + 1)
            if self._covariance[i][j]
        }
        return {"cells": cells, "means": [float(f"{mean:.9g}") for mean in self._means], "names": list(self._index)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Belief:
        """Raises ``KeyError``, ``ValueError`` or ``IndexError`` for what ``to_json`` never wrote."""
        belief = cls()
        belief._index = {str(name): number for number, name in enumerate(data["names"])}
        belief._means = [float(mean) for mean in data["means"]]
        size = len(belief._means)
        if size != len(belief._index):
            raise ValueError("as many means as names are wanted")
        belief._covariance = [[0.0] * size for _ in range(size)]
        for key, value in data["cells"].items():
            i, _, j = key.partition(" ")
            belief._covariance[int(i)][int(j)] = belief._covariance[int(j)][int(i)] = float(value)
        return belief

    def _at(self, weight: Weight) -> int:
        found = self._index.get(weight.name)
        if found is None:
            found = self._index[weight.name] = len(self._means)
            self._means.append(weight.mean)
            for row in self._covariance:
                row.append(0.0)
            self._covariance.append([0.0] * found + [weight.deviation**2])
        return found

    def _along(self, at: Sequence[int]) -> tuple[list[float], float]:
        """How each weight goes along with the sum, and the sum's variance."""
        along = [sum(row[i] for i in at) for row in self._covariance]
        return along, max(sum(along[i] for i in at), 0.0)

    def _move(self, along: Sequence[float], push: float, shrink: float) -> None:
        self._means = [mean + push * one for mean, one in zip(self._means, along, strict=True)]
        for row, one in zip(self._covariance, along, strict=True):
            if one:
                less = shrink * one
                row[:] = [cell - less * other for cell, other in zip(row, along, strict=True)]


def logistic(odds: float) -> float:
    """The probability whose logarithm of odds this is."""
    if odds < 0:
        grown = math.exp(max(odds, -700.0))
        return grown / (1.0 + grown)
    return 1.0 / (1.0 + math.exp(-min(odds, 700.0)))

"""How values are spread, in bins that grow by a fixed ratio (DDSketch): small, and two can be added up.

Owns one invariant: a quantile is within ``RELATIVE_ERROR`` of a value that was added, however many there were and however many
histograms were merged, for values from ``LEAST`` to ``MOST``; others count as the nearest of these. None has no quantile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

RELATIVE_ERROR: Final = 0.025
LEAST: Final = 1e-6
MOST: Final = 1e7

GROWTH: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
"""From one bin to the next: some 5 %."""
LN_GROWTH: Final = math.log(GROWTH)


def bin_of(value: float) -> int:
    return math.ceil(math.log(min(max(value, LEAST), MOST)) / LN_GROWTH)


def value_of(number: int) -> float:
    """What stands for all values of a bin."""
    return 2 * GROWTH**number / (GROWTH + 1)


class LogHistogram:
    """Counts by bin; ``total`` is the sum of the values themselves."""

    __slots__ = ("bins", "count", "total")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        number = bin_of(value)
        self.bins[number] = self.bins.get(number, 0) + 1
        self.count += 1
        self.total += value

    def merge(self, other: LogHistogram) -> None:
        """As if all that was added to ``other`` had been added here."""
        bins = self.bins
        for number, count in other.bins.items():
            bins[number] = bins.get(number, 0) + count
        self.count += other.count
        self.total += other.total

    def quantile(self, share: float) -> float | None:
        """The value that ``share`` of all are not above; None: there is none."""
        if not self.count:
            return None
        wanted, seen = share * (self.count - 1), 0
        for number in sorted(self.bins):
            seen += self.bins[number]
            if seen > wanted:
                return value_of(number)
        return value_of(max(self.bins))

    def to_json(self) -> dict[str, Any]:
        return {"bins": {str(number): count for number, count in self.bins.items()}, "total": self.total}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        made = cls()
        made.bins = {int(number): int(count) for number, count in data["bins"].items()}
        made.count = sum(made.bins.values())
        made.total = float(data["total"])
        return made

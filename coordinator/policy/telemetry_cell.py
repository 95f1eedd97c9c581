"""What was seen in a span of time: counts, sums, spreads and last standings, each only if it was seen at all.

Owns one invariant: no sample is no sample. What nobody told of has no key, its rate and quantiles are None, and adding cells
up is the same as having told one cell everything. What the keys mean is ``telemetry``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from coordinator.policy.log_histogram import LogHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUANTILES: Final[Mapping[str, float]] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class TelemetryCell:
    """Keys are free text. ``standings`` are numbers of which the newest counts, not the sum."""

    __slots__ = ("counts", "spreads", "standings", "sums")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.spreads: dict[str, LogHistogram] = {}
        self.standings: dict[str, float] = {}
        self.sums: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether anything happened; how things stand is no happening."""
        return bool(self.counts or self.spreads or self.sums)

    def count(self, key: str, more: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + more

    def sum(self, key: str, more: float) -> None:
        self.sums[key] = self.sums.get(key, 0.0) + more

    def spread(self, key: str, value: float) -> None:
        found = self.spreads.get(key)
        if found is None:
            found = self.spreads[key] = LogHistogram()
        found.add(value)

    def merge(self, later: TelemetryCell) -> None:
        for key, count in later.counts.items():
            self.count(key, count)
        for key, amount in later.sums.items():
            self.sum(key, amount)
        for key, values in later.spreads.items():
            self.spreads.setdefault(key, LogHistogram()).merge(values)
        self.standings.update(later.standings)

    def rate(self, part: str, whole: str) -> float | None:
        """The share of ``part`` in ``whole``; None: there was nothing it could be a share of."""
        total = self.counts.get(whole, 0)
        return self.counts.get(part, 0) / total if total else None

    def quantiles(self, key: str) -> dict[str, Any] | None:
        values = self.spreads.get(key)
        if values is None or not values.count:
            return None
        return {"count": values.count, "mean": values.total / values.count} | {
            name: values.quantile(share) for name, share in _QUANTILES.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts,
            "spreads": {key: values.to_json() for key, values in self.spreads.items()},
            "standings": self.standings,
            "sums": self.sums,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        made = cls()
        made.counts = {str(key): int(count) for key, count in data["counts"].items()}
        made.spreads = {str(key): LogHistogram.from_json(values) for key, values in data["spreads"].items()}
        made.standings = {str(key): float(value) for key, value in data["standings"].items()}
        made.sums = {str(key): float(amount) for key, amount in data["sums"].items()}
        return made

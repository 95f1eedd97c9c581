"""What is counted, as values: families of numbers with labels, ready for whoever shows or scrapes them.

Owns one invariant: a family that was never fed has no samples; it is not zero. It counts nothing itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MeterKind(enum.StrEnum):
    """As Prometheus has them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A histogram's content: ``counts`` has one more than ``bounds`` (upper ends, ascending), each by itself, not summed up."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """One family. ``samples`` maps the values of ``labels``, in their order, to a number or, for a histogram, a spread."""

    about: str
    kind: MeterKind
    labels: tuple[str, ...] = ()
    name: str
    samples: tuple[tuple[tuple[str, ...], float | Spread], ...]

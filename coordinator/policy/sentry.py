"""Sentries: one metric each, by the method that suits it; fed by event, asked now and then how far it went.

Owns one invariant: a sentry that has seen too little to know what is usual raises no alarm. ``height`` is in thresholds: from 1
on it is an alarm, below 0.5 it is calm. How long an alarm lasts is ``anomaly``'s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Protocol

from coordinator.policy.cusum import BernoulliCusum, Cusum, PoissonCusum, RankCusum, Shift
from coordinator.policy.log_histogram import GROWTH
from coordinator.policy.reference_window import LEAST, ReferenceWindow
from coordinator.policy.robust_z import RobustZ

_GROUPS: Final = 50
_DAY_S: Final = 86_400.0


class DetectorMethod(enum.StrEnum):
    BERNOULLI = "bernoulli"
    POISSON = "poisson"
    RANK = "rank"
    ROBUST_Z = "robust_z"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPlan:
    """``allowance`` is for ranks; ``floor``, ``memory``, ``shift`` and ``usual`` for shares; ``rate`` for counts."""

    allowance: float = 0.0
    floor: float = 0.01
    least: int = LEAST
    memory: float = 5_000.0
    method: DetectorMethod
    rate: float = 0.5
    shift: Shift = field(default_factory=Shift)
    threshold: float
    usual: float = 0.01


class Sentry(Protocol):
    def height(self) -> float:
        """The highest since the last time it was asked, in thresholds."""

    def calm(self) -> bool: ...
    def role(self) -> str: ...
    def size(self) -> str: ...
    def forget(self) -> None:
        """Of the evidence; what is usual stays known."""

    def restart(self) -> None:
        """Nothing is known of what is usual any more."""


class _OfCusum:
    """What all sums have in common."""

    cusum: Cusum

    def height(self) -> float:
        return self.cusum.take_peak() / self.cusum.threshold

    def calm(self) -> bool:
        return self.cusum.sum < self.cusum.threshold / 2

    def role(self) -> str:
        return self.cusum.blamed()

    def forget(self) -> None:
        self.cusum.restart()


class RankSentry(_OfCusum):
    """A value by call, compared with those of its own group (a role with its model): groups may differ, and come and go."""

    def __init__(self, plan: DetectorPlan) -> None:
        self._rank = RankCusum(plan.allowance, plan.threshold)
        self._windows: dict[str, ReferenceWindow] = {}
        self.cusum = self._rank.cusum

    def step(self, group: str, number: int, at_s: float, role: str) -> None:
        window = self._windows.get(group)
        if window is None:
            group = group if len(self._windows) < _GROUPS else "other"
            window = self._windows.setdefault(group, ReferenceWindow())
        score = window.score(number, at_s)
        if score is not None:
            self._rank.step(score, number - window.median, role)
        window.add(number, at_s)

    def size(self) -> str:
        events = self.cusum.events
        return f"{GROWTH ** (self._rank.bins_above / events):.2g} times the usual" if events else ""

    def restart(self) -> None:
        self._windows.clear()
        self.forget()


class ShareSentry(_OfCusum):
    """Yes or no by event."""

    def __init__(self, plan: DetectorPlan) -> None:
        self._least = plan.least
        self._plan = plan
        self.restart()

    def restart(self) -> None:
        plan = self._plan
        self._seen = 0
        self._share = BernoulliCusum(plan.usual, plan.shift, plan.threshold, memory=plan.memory, floor=plan.floor)
        self.cusum = self._share.cusum

    def step(self, hit: bool, role: str) -> None:
        self._share.step(hit, role)
        if self._seen < self._least:
            self._seen += 1
            self.cusum.restart()

    def size(self) -> str:
        events = self.cusum.events
        return f"{self._share.hits / events:.0%} instead of {self._share.usual:.2g}" if events else ""

    def forget(self) -> None:
        self.cusum.restart()


class CountSentry(_OfCusum):
    """Events for an exposure, by look."""

    def __init__(self, plan: DetectorPlan) -> None:
        self._count = PoissonCusum(plan.rate, plan.threshold, memory_s=_DAY_S, least=plan.least)
        self.cusum = self._count.cusum

    def step(self, count: int, exposure: float, took_s: float) -> None:
        self._count.step(count, exposure, took_s)

    def size(self) -> str:
        expected = self._count.expected
        return f"{self._count.seen / expected:.0%} of the usual" if expected else ""

    def restart(self) -> None:
        self._count.restart()


class ZSentry:
    """Any value, by its robust Z-score."""

    def __init__(self, plan: DetectorPlan) -> None:
        self._threshold = plan.threshold
        self._z = RobustZ()
        self._height = 0.0
        self._said = ""

    def step(self, value: float) -> None:
        self._z.step(value)

    def height(self) -> float:
        self._height = self._z.take_peak() / self._threshold
        if self._height >= 1:
            times = self._z.last / self._z.typical if self._z.typical > 0 else 0.0
            self._said = f"{times:.2g} times the median" if times else f"{self._z.last:.3g}"
        return self._height

    def calm(self) -> bool:
        return self._height < 0.5

    def role(self) -> str:
        return ""

    def size(self) -> str:
        return self._said

    def forget(self) -> None:
        self._z.peak = 0.0

    def restart(self) -> None:
        self._z.restart()

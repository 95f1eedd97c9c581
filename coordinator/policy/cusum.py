"""Sums of evidence that something changed (CUSUM), for ranks, for yes or no, and for counts; one step for each event.

Owns one invariant: a sum is never below zero nor above 1.5 times its threshold, whatever is fed to it, and what is not fed does
not move it. ``p1`` is always on its own side of ``p0``. When a sum is an alarm, and for how long, is ``anomaly``'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

CAP: Final = 1.5
"""Times the threshold: so far a sum can rise, that it finds back down when all is well again."""
_PRIOR: Final = 10.0
"""As many events the first guess of a share is worth."""
_FLOOR: Final = 0.01
_ROLES: Final = 20
_SETTLED: Final = 400.0
_WEIGH_EVERY: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What share is looked for instead of the usual one: ``odds`` times the usual odds, or ``drop`` less (which goes first)."""

    drop: float = 0.0
    odds: float = 1.0

    @property
    def falling(self) -> bool:
        return self.drop > 0 or self.odds < 1

    def share(self, usual: float) -> float:
        """Strictly between 0 and 1, and strictly on the shift's side of ``usual``."""
        if self.drop > 0:
            return max(usual - self.drop, usual / 2)
        odds = self.odds * usual / (1 - usual)
        return odds / (1 + odds)


class Cusum:
    """The sum, its highest point since it was last looked at, and who fed it since it left zero."""

    __slots__ = ("by_role", "events", "peak", "sum", "threshold")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.restart()

    def restart(self) -> None:
        self.by_role: dict[str, float] = {}
        self.events = 0
        """Since the sum left zero."""
        self.peak = 0.0
        self.sum = 0.0

    def move(self, by: float, role: str) -> None:
        moved = self.sum + by
        if moved <= 0.0:
            if self.events:
                self.sum, self.events, self.by_role = 0.0, 0, {}
            return
        self.events += 1
        if role in self.by_role or len(self.by_role) < _ROLES:
            self.by_role[role] = self.by_role.get(role, 0.0) + by
        self.sum = moved = min(moved, CAP * self.threshold)
        if moved > self.peak:
            self.peak = moved

    def take_peak(self) -> float:
        """The highest since the last time it was asked."""
        peak, self.peak = self.peak, self.sum
        return peak

    def blamed(self) -> str:
        """The role that nearly all the evidence is from, of several; empty: none is."""
        if len(self.by_role) < 2:
            return ""
        positive = sum(max(0.0, amount) for amount in self.by_role.values())
        role, most = max(self.by_role.items(), key=lambda item: item[1])
        return role if positive and most >= 0.8 * positive else ""


class RankCusum:
    """Values become larger. ``move`` gets normal scores of ranks, ``allowance`` is the shift in them that is let pass."""

    __slots__ = ("_allowance", "bins_above", "cusum")

    def __init__(self, allowance: float, threshold: float) -> None:
        self._allowance = allowance
        self.bins_above = 0
        """Sum, over the events since the sum left zero, of how many bins they were above the usual median."""
        self.cusum = Cusum(threshold)

    def step(self, score: float, bins_above: int, role: str) -> None:
        self.cusum.move(score - self._allowance, role)
        self.bins_above = self.bins_above + bins_above if self.cusum.events else 0


class BernoulliCusum:
    """A share moves to another. The usual one is learnt from ``memory`` events, but not while an alarm builds up.

    What a hit and a miss weigh is worked out anew every few events only: by then the usual share has hardly moved.
    """

    __slots__ = ("_due", "_floor", "_if_hit", "_if_miss", "_memory", "_seen", "_shift", "cusum", "hits", "usual")

    def __init__(self, usual: float, shift: Shift, threshold: float, *, memory: float, floor: float = _FLOOR) -> None:
        self._due = 0
        self._floor = floor
        self._if_hit = self._if_miss = 0.0
        self._memory = memory
        self._seen = _PRIOR
        self._shift = shift
        self.cusum = Cusum(threshold)
        self.hits = 0
        """Since the sum left zero."""
        self.usual = usual

    def step(self, hit: bool, role: str) -> None:
        cusum = self.cusum
        if self._due <= 0:
            self._weigh()
        self._due -= 1
        by = self._if_hit if hit else self._if_miss
        if by > 0.0 or cusum.sum > 0.0:
            cusum.move(by, role)
            self.hits = self.hits + hit if cusum.events else 0
        if cusum.sum < cusum.threshold / 2:
            if self._seen < self._memory:
                self._seen += 1
            self.usual += (hit - self.usual) / self._seen

    def _weigh(self) -> None:
        self._due = _WEIGH_EVERY if self._seen >= _SETTLED else 1
        if self._shift.drop and self.usual < 2 * self._floor:  # from next to nothing nothing can fall
            self._if_hit = self._if_miss = 0.0
            return
        p0 = min(max(self.usual, self._floor), 1 - self._floor)
        p1 = self._shift.share(p0)
        self._if_hit, self._if_miss = math.log(p1 / p0), math.log((1 - p1) / (1 - p0))


class PoissonCusum:
    """Counts for an exposure become fewer: ``share`` of the usual rate. The rate is that of the last ``memory_s`` or so."""

    __slots__ = ("_least", "_memory_s", "_share", "counted", "cusum", "expected", "exposed", "seen")

    def __init__(self, share: float, threshold: float, *, memory_s: float, least: int) -> None:
        self._least = least
        self._memory_s = memory_s
        self._share = share
        self.counted = 0.0
        self.cusum = Cusum(threshold)
        self.expected = 0.0
        """Events to be expected since the sum left zero; ``seen`` is how many came."""
        self.exposed = 0.0
        self.seen = 0

    def restart(self) -> None:
        self.counted, self.exposed, self.expected, self.seen = 0.0, 0.0, 0.0, 0
        self.cusum.restart()

    def step(self, count: int, exposure: float, took_s: float) -> None:
        if exposure <= 0:
            return
        cusum = self.cusum
        if self.counted >= self._least:
            expected = self.counted / self.exposed * exposure
            cusum.move(count * math.log(self._share) + (1 - self._share) * expected, "")
            self.expected = self.expected + expected if cusum.events else 0.0
            self.seen = self.seen + count if cusum.events else 0
        if cusum.sum < cusum.threshold / 2:
            kept = math.exp(-took_s / self._memory_s)
            self.counted = self.counted * kept + count
            self.exposed = self.exposed * kept + exposure

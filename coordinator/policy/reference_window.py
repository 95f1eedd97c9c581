"""What is usual: a sliding window of earlier values, and how unusual a new value is in it.

Owns one invariant: a value is compared with what came ``GAP_S`` to ``GAP_S + WINDOW_S`` ago, never with its own neighbours, and
with nothing at all while that is fewer than ``LEAST`` values. It keeps bins, not values.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

WINDOW_S: Final = 6 * 3600.0
GAP_S: Final = 1800.0
LEAST: Final = 200
FARTHEST: Final = 3.0
"""Scores beyond are cut: one strange value is no evidence of a change."""
_SLOT_S: Final = 600.0

_MIDDLE: Final = (
    (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.38357751867269e2, -3.066479806614716e1, 2.50662827745924),
    (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1, -1.328068155288572e1, 1.0),
)  # fmt: skip
_TAIL: Final = (
    (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783),
    (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0),
)  # fmt: skip
_TAIL_FROM: Final = 0.02425
"""P. J. Acklam's approximation; ``statistics`` has a better one, and takes 10 ms to load."""


def normal_score(rank: float) -> float:
    """Below which value ``rank`` (between 0 and 1, without them) of a standard normal distribution lies; to nine digits."""
    if rank > 0.5:
        return -normal_score(1 - rank)
    if rank < _TAIL_FROM:
        root = math.sqrt(-2 * math.log(rank))
        return _polynomial(_TAIL[0], root) / _polynomial(_TAIL[1], root)
    off = rank - 0.5
    return off * _polynomial(_MIDDLE[0], off * off) / _polynomial(_MIDDLE[1], off * off)


def _polynomial(factors: tuple[float, ...], at: float) -> float:
    total = 0.0
    for factor in factors:
        total = total * at + factor
    return total


class ReferenceWindow:
    """``score`` a bin, then ``add`` it."""

    __slots__ = ("_ends_s", "_low", "_open", "_scores", "_slots", "count", "median")

    def __init__(self) -> None:
        self._slots: deque[tuple[float, dict[int, int]]] = deque()
        self.restart()

    def restart(self) -> None:
        """What was usual is so no longer: begin anew."""
        self._slots.clear()
        self._open: dict[int, int] = {}
        self._ends_s = 0.0
        self._low = 0
        self._scores: list[float] = []
        self.count = 0
        self.median = 0
        """A bin; of no meaning while ``ready`` is false."""

    @property
    def ready(self) -> bool:
        return self.count >= LEAST

    def score(self, number: int) -> float | None:
        """The normal score of the bin's rank among what is usual; None: it is not known what is usual."""
        if self.count < LEAST:
            return None
        at = min(max(number - self._low, 0), len(self._scores) - 1)
        return self._scores[at]

    def add(self, number: int, at_s: float) -> None:
        if at_s >= self._ends_s:
            self._turn(at_s)
        self._open[number] = self._open.get(number, 0) + 1

    def refresh(self, at_s: float) -> None:
        """Time went on, whether or not values came."""
        if self._ends_s and at_s >= self._ends_s:
            self._turn(at_s)

    def _turn(self, at_s: float) -> None:
        if self._open:
            self._slots.append((self._ends_s, self._open))
        self._open = {}
        self._ends_s = at_s + _SLOT_S
        while self._slots and self._slots[0][0] < at_s - GAP_S - WINDOW_S:
            self._slots.popleft()
        self._build(at_s - GAP_S)

    def _build(self, until_s: float) -> None:
        bins: dict[int, int] = {}
        for ended_s, slot in self._slots:
            if ended_s <= until_s:
                for number, count in slot.items():
                    bins[number] = bins.get(number, 0) + count
        self.count = sum(bins.values())
        if self.count < LEAST:
            return
        self._low = min(bins) - 1
        self._scores, below, least = [], 0, 0.5 / self.count
        for number in range(self._low, max(bins) + 2):
            here = bins.get(number, 0)
            rank = (below + here / 2) / self.count
            if below * 2 <= self.count < (below + here) * 2:
                self.median = number
            below += here
            score = normal_score(min(max(rank, least), 1 - least))
            self._scores.append(min(max(score, -FARTHEST), FARTHEST))

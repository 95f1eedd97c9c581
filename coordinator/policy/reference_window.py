"""What is usual: a sliding window of earlier values, and how unusual a new value is in it.

Owns one invariant: a value is compared with what came ``GAP_S`` to ``GAP_S + WINDOW_S`` ago, never with its own neighbours, and
with nothing at all while that is fewer than ``LEAST`` values. It keeps bins, not values.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate
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
    """``score`` a bin, then ``add`` it. Scores are worked out when they are asked for, and known until the window moves on."""

    __slots__ = ("_below", "_bins", "_ends_s", "_known", "_numbers", "_open", "_slots", "_waiting", "count", "median")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """What was usual is so no longer: begin anew."""
        self._bins: dict[int, int] = {}
        """Of all slots in the window; ``_waiting`` are those that are too young for it."""
        self._slots: deque[tuple[float, dict[int, int]]] = deque()
        self._waiting: deque[tuple[float, dict[int, int]]] = deque()
        self._open: dict[int, int] = {}
        self._ends_s = 0.0
        self._numbers: list[int] = []
        self._below: list[int] = []
        self._known: dict[int, float] = {}
        self.count = 0
        self.median = 0
        """A bin; of no meaning while ``ready`` is false."""

    @property
    def ready(self) -> bool:
        return self.count >= LEAST

    def score(self, number: int, at_s: float) -> float | None:
        """The normal score of the bin's rank among what is usual; None: it is not known what is usual."""
        if at_s >= self._ends_s:
            self._turn(at_s)
        if self.count < LEAST:
            return None
        found = self._known.get(number)
        if found is None:
            found = self._known[number] = self._work_out(number)
        return found

    def _work_out(self, number: int) -> float:
        at = bisect_left(self._numbers, number)
        rank = (self._below[at] + self._bins.get(number, 0) / 2) / self.count
        least = 0.5 / self.count
        return min(max(normal_score(min(max(rank, least), 1 - least)), -FARTHEST), FARTHEST)

    def add(self, number: int, at_s: float) -> None:
        if at_s >= self._ends_s:
            self._turn(at_s)
        self._open[number] = self._open.get(number, 0) + 1

    def _turn(self, at_s: float) -> None:
        if self._open:
            self._waiting.append((self._ends_s, self._open))
        self._open = {}
        self._ends_s = at_s + _SLOT_S
        while self._waiting and self._waiting[0][0] <= at_s - GAP_S:
            self._slots.append(self._waiting.popleft())
            self._change(self._slots[-1][1], 1)
        while self._slots and self._slots[0][0] < at_s - GAP_S - WINDOW_S:
            self._change(self._slots.popleft()[1], -1)
        self._count()

    def _change(self, slot: dict[int, int], sign: int) -> None:
        bins = self._bins
        for number, count in slot.items():
            left = bins.get(number, 0) + sign * count
            if left:
                bins[number] = left
            else:
                del bins[number]

    def _count(self) -> None:
        self._known = {}
        self._numbers = sorted(self._bins)
        self._below = [0, *accumulate(self._bins[number] for number in self._numbers)]
        self.count = self._below[-1]
        if self.count:
            self.median = self._numbers[bisect_right(self._below, self.count / 2) - 1]

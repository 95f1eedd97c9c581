"""What is usual: a sliding window of earlier values, and how unusual a new value is in it.

Owns one invariant: a value is compared with what came ``GAP_S`` to ``GAP_S + WINDOW_S`` ago, never with its own neighbours, and
with nothing at all while that is fewer than ``LEAST`` values. It keeps bins, not values.
"""

from __future__ import annotations

from collections import deque
from statistics import NormalDist
from typing import Final

WINDOW_S: Final = 6 * 3600.0
GAP_S: Final = 1800.0
LEAST: Final = 200
FARTHEST: Final = 3.0
"""Scores beyond are cut: one strange value is no evidence of a change."""
_SLOT_S: Final = 600.0

_NORMAL: Final = NormalDist()


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
            score = _NORMAL.inv_cdf(min(max(rank, least), 1 - least))
            self._scores.append(min(max(score, -FARTHEST), FARTHEST))

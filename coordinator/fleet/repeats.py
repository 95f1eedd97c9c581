"""Counts how often an agent has done the same in a row: one call again and again, or a round of a few calls.

Owns one invariant: one more answer costs the same however many there were, and only the last few are remembered. Whether a
count is a loop is ``policy.health``'s.
"""

from __future__ import annotations

from collections import deque
from typing import Final

LONGEST_ROUND: Final = 4
"""Edit, a test that fails, undo, the same test that fails: the longest round that agents are known to be caught in."""


class Repeats:
    """``count``: how often the newest round of one to ``LONGEST_ROUND`` answers came in a row, partial ones left out."""

    def __init__(self) -> None:
        self.count = 0
        self._last: deque[bytes] = deque(maxlen=LONGEST_ROUND)
        self._runs = dict.fromkeys(range(1, LONGEST_ROUND + 1), 0)
        """For each length of a round, how many answers in a row were the same as the one a round before."""

    def take(self, mark: bytes) -> None:
        """``mark`` tells equal calls with equal answers; an empty one is equal to nothing."""
        for length, run in self._runs.items():
            same = bool(mark) and len(self._last) >= length and self._last[-length] == mark
            self._runs[length] = run + 1 if same else 0
        self._last.append(mark)
        self.count = 1 + max(run // length for length, run in self._runs.items())

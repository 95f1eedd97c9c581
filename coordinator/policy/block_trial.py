"""BlockTrial: two values of a knob in turn, each for a block of time, in pairs whose order chance decides.

Owns one invariant: however often it is looked at, a knob without any effect is called better, or worse, in at most ``ERROR`` of
trials each. As chance decides which of a pair comes first, a difference has either sign alike when there is no effect; the bet on
its sign is a martingale, and Ville's inequality bounds it at all times (G. Shafer, Testing by betting, JRSS A 184, 2021).
"""

from __future__ import annotations

import math
from typing import Final

from coordinator.domain.knob import ChangeVerdict

ERROR: Final = 0.05
EFFECT: Final = 0.5
"""What it is made to find: half as much again. Smaller effects take weeks."""
SPREAD: Final = 0.3
"""Standard deviation of a block's logarithm that is planned for: 48 tasks, and the mood of the hour."""
_STAKES: Final = (1.0, 2.0, 4.0, 8.0)


def pairs_planned(effect: float = EFFECT, spread: float = SPREAD) -> int:
    """Pairs of blocks with which an effect is found in at least 80 % of trials; half more than where one looks but once."""
    return math.ceil(1.5 * (15.7 * spread**2 / math.log1p(effect) ** 2 + 2))


class BlockTrial:
    """``take`` each pair of scores; a verdict, or None: go on."""

    def __init__(self, most_pairs: int | None = None) -> None:
        self._better = [0.0] * len(_STAKES)
        """Logarithms of what each bet has won."""
        self._worse = [0.0] * len(_STAKES)
        self.left = pairs_planned() if most_pairs is None else most_pairs
        self.pairs = 0
        self._sum = 0.0

    def take(self, old: float, new: float) -> ChangeVerdict | None:
        """Scores may be negative; none of both is no pair."""
        size = abs(old) + abs(new)
        if size:
            difference = (new - old) / size
            self.pairs += 1
            self._sum += difference
            for number, stake in enumerate(_STAKES):
                fair = _log_cosh(stake * difference)
                self._better[number] += stake * difference - fair
                self._worse[number] -= stake * difference + fair
        self.left -= 1
        if _won(self._better) >= 1 / ERROR:
            return ChangeVerdict.KEPT
        if _won(self._worse) >= 1 / ERROR or self.left <= 0:
            return ChangeVerdict.REVERTED
        return None

    def said(self) -> str:
        if not self.pairs:
            return "nothing came of either"
        mean = max(-0.999, min(self._sum / self.pairs, 0.999))
        return f"{(1 + mean) / (1 - mean) - 1:+.0%} in {self.pairs} pairs of blocks, odds {_won(self._better):.2g} to 1"


def _log_cosh(value: float) -> float:
    return abs(value) + math.log1p(math.exp(-2 * abs(value))) - math.log(2)


def _won(logs: list[float]) -> float:
    return sum(math.exp(min(one, 700.0)) for one in logs) / len(logs)

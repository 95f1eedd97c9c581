"""How many robust standard deviations a value is above the median of those before it.

Owns one invariant: a window without spread still knows a jump (a hundredth of its median counts as one deviation). For metrics
that a person chose it for: on model calls it is noisier than the sums of ``cusum``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_WINDOW: Final = 60
_LEAST: Final = 30
_TO_SIGMA: Final = 1.4826
_NARROWEST: Final = 0.01


class RobustZ:
    """``peak`` is the highest score since it was last taken; ``typical`` the median of then."""

    __slots__ = ("_values", "last", "peak", "typical")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)
        self.last = 0.0
        self.peak = 0.0
        self.typical = 0.0

    def step(self, value: float) -> None:
        if len(self._values) >= _LEAST:
            typical = _median(self._values)
            spread = _TO_SIGMA * _median(abs(one - typical) for one in self._values)
            score = (value - typical) / max(spread, _NARROWEST * abs(typical), 1e-9)
            if score > self.peak:
                self.peak, self.last, self.typical = score, value, typical
        self._values.append(value)

    def take_peak(self) -> float:
        peak, self.peak = self.peak, 0.0
        return peak


def _median(values: Iterable[float]) -> float:
    """The upper one of two."""
    known = sorted(values)
    return known[len(known) // 2]

"""How fast a fleet may grow: a few at once, then one after the other.

A token bucket over starts (Turner, IEEE Communications Magazine, October 1986). A value in, a value out; time comes in as
an argument, and a clock that goes back costs a pause, no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """``at_once`` starts may follow each other, further ones are ``every_s`` apart (0: there is no ramp).

    ``full_at`` is when nothing will be left of the starts so far: each moves it on by one pause.
    """

    at_once: int
    every_s: float
    full_at: float = 0.0

    def wait_s(self, now: float) -> float:
        """Until the next may start; 0: now."""
        return max(self.full_at - (self.at_once - 1) * self.every_s - now, 0.0)

    def after_start(self, now: float) -> Ramp:
        """One was started at ``now``."""
        return replace(self, full_at=max(self.full_at, now) + self.every_s)

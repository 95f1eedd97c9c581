"""Servo: a PID controller for one knob whose effect is quick, monotone and continuous.

Owns one invariant: it begins at the live value (no bump), never leaves the knob's bounds, and winds nothing up while it stands
at one of them; a missing sample changes nothing, not even what it remembers. It works in logarithms, because knobs of this kind
act by their ratio. Source: K. J. Åström, T. Hägglund, PID Controllers, 1995, ch. 3 (tracking, derivative on measurement).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coordinator.domain.knob import Knob

_LEAST: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServoPlan:
    """``target`` is what the measured value is to be, ``band`` the share of it within which nothing is done. ``rising``: a
    larger knob makes the measured value larger. Gains are for the relative error and act on the knob's logarithm."""

    band: float = 0.25
    cool_s: float
    derivative_s: float = 0.0
    gain: float = 0.3
    integral_s: float = 120.0
    rising: bool
    target: float


class Servo:
    """``step`` with each sample; the value that the knob should have, None: leave it."""

    __slots__ = ("_at_s", "_integral", "_knob", "_measured", "_moved_s", "_plan", "_set")

    def __init__(self, knob: Knob, plan: ServoPlan) -> None:
        self._knob = knob
        self._plan = plan
        self.restart()

    def restart(self) -> None:
        """Somebody else turned the knob: begin from what it is."""
        self._at_s = -math.inf
        self._integral = 0.0
        self._measured = 0.0
        self._moved_s = -math.inf
        self._set: float | None = None

    def step(self, value: float, measured: float | None, at_s: float) -> float | None:
        """``value`` is the live one, ``measured`` None when there is no sample."""
        plan = self._plan
        if measured is None or not math.isfinite(measured) or at_s - self._moved_s < plan.cool_s:
            return None
        error = min(max((plan.target - measured) / plan.target, -1.0), 1.0) * (1.0 if plan.rising else -1.0)
        if self._set != value:  # the first sample, or somebody turned it: what it is explains itself
            self._set, self._at_s, self._measured = value, at_s, measured
            self._integral = math.log(max(value, _LEAST)) - plan.gain * error
        took_s = min(at_s - self._at_s, plan.integral_s)
        slope = (measured - self._measured) / plan.target / took_s if took_s > 0 else 0.0
        self._at_s, self._measured = at_s, measured
        if abs(error) <= plan.band:
            return None
        self._integral += plan.gain * error * took_s / plan.integral_s
        damping = plan.gain * plan.derivative_s * slope * (1.0 if plan.rising else -1.0)
        wanted = self._integral + plan.gain * error - damping
        return self._moved(value, wanted, at_s)

    def _moved(self, value: float, wanted: float, at_s: float) -> float | None:
        low, high = math.log(max(self._knob.minimum, _LEAST)), math.log(max(self._knob.maximum, _LEAST))
        held = min(max(wanted, low), high)
        self._integral += held - wanted  # what the bounds take away is not saved up
        new = self._knob.nearest(math.exp(held))
        if new == value:
            return None
        self._set, self._moved_s = new, at_s
        return new

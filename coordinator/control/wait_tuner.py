"""WaitTuner: two servos that keep waits in bounds: how many calls a door lets wait, and when a call is lifted by a lane.

Owns one invariant: one of the two moves at a time, and none where nothing waits and nobody was turned away: a free door says
nothing of how deep it should be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.domain.knob import ChangeAuthor
from coordinator.policy.servo import Servo, ServoPlan

if TYPE_CHECKING:
    from coordinator.control.knob_board import KnobBoard
    from coordinator.control.objective import Objective
    from coordinator.domain.knob import KnobReading

_EVERY_S: Final = 15.0
_COOL_S: Final = 60.0


class WaitTuner:
    """``look`` about every second."""

    def __init__(self, board: KnobBoard, objective: Objective, max_wait_s: float, *, dry: bool) -> None:
        self._board = board
        self._dry = dry
        self._looked_s = 0.0
        self._moved_s = float("-inf")
        self._objective = objective
        self._plan = ServoPlan(cool_s=_COOL_S, derivative_s=30.0, rising=True, target=max_wait_s)
        self._servos: dict[str, Servo] = {}

    async def look(self, at_s: float) -> None:
        if at_s - self._looked_s < _EVERY_S or at_s - self._moved_s < _COOL_S:
            return
        self._looked_s = at_s
        measured = {"promote_s": self._lane_age(at_s), "room": self._wait(at_s)}
        known = await self._board.readings() if any(one is not None for one in measured.values()) else {}
        for name, wait_s in measured.items():
            if name in known and await self._step(known[name], wait_s, at_s):
                self._moved_s = at_s
                return

    async def _step(self, reading: KnobReading, wait_s: float | None, at_s: float) -> bool:
        name = reading.knob.name
        if wait_s is None or not self._board.may_turn(reading):
            return False
        servo = self._servos.setdefault(name, Servo(reading.knob, self._plan))
        new = servo.step(reading.value, wait_s, at_s)
        if new is None:
            return False
        who = "calls" if name == "room" else "calls of lower lanes"
        why = f"95 % of {who} wait up to {wait_s:.3g} s, and {self._plan.target:g} s are aimed at"
        return await self._board.turn(name, new, ChangeAuthor.SERVO, why, dry=self._dry) is not None

    def _wait(self, at_s: float) -> float | None:
        """None: nobody waits too long, and nobody was turned away."""
        wait_s = self._objective.wait_s(at_s)
        if wait_s is None or (wait_s <= self._plan.target and not self._objective.shed(at_s)):
            return None
        return wait_s

    def _lane_age(self, at_s: float) -> float | None:
        """Of the lower lanes, when they or the urgent ones wait too long; None otherwise."""
        low, high = (self._objective.wait_s(at_s, urgent=urgent) for urgent in (False, True))
        if low is None or high is None or max(low, high) <= self._plan.target:
            return None
        return low

    def outside(self, knob: str) -> None:
        if knob in self._servos:
            self._servos[knob].restart()

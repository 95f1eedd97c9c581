"""Candidates that alone cannot be judged wait here, beside the line, each until its time has come again.

Owns one invariant: who cannot be judged waits longer each time, up to an hour, and holds up nobody else. Why somebody is
parked is the gate's word; the lander asks who may go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coordinator.kit.clock import Clock

_LONGEST_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """``since`` and ``until`` are monotonic."""

    pause_s: float
    reason: str
    since: float
    until: float


class Parking:
    """Task ids and why each waits."""

    def __init__(self, clock: Clock, *, pause_s: float) -> None:
        self._clock = clock
        self._pause_s = pause_s
        self._places: dict[str, _Place] = {}

    def __bool__(self) -> bool:
        return bool(self._places)

    def park(self, task_id: str, reason: str) -> bool:
        """True when it is new here."""
        now, before = self._clock.monotonic(), self._places.get(task_id)
        pause_s = min(before.pause_s * 2, _LONGEST_S) if before else self._pause_s
        since = before.since if before else now
        self._places[task_id] = _Place(pause_s=pause_s, reason=reason, since=since, until=now + pause_s)
        return before is None

    def leave(self, task_id: str) -> float | None:
        """How long it waited, None when it did not."""
        place = self._places.pop(task_id, None)
        return None if place is None else self._clock.monotonic() - place.since

    def is_waiting(self, task_id: str) -> bool:
        """Whether its time has not come yet."""
        return task_id in self._places and self._places[task_id].until > self._clock.monotonic()

    def reasons(self) -> dict[str, str]:
        return {task_id: place.reason for task_id, place in self._places.items()}

    def since(self) -> float:
        """When the first of them came; there must be one."""
        return min(place.since for place in self._places.values())

    def next_s(self) -> float:
        """How long until the time of the first of them comes; there must be one."""
        return max(min(place.until for place in self._places.values()) - self._clock.monotonic(), 0.0)

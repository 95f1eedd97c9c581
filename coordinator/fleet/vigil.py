"""Keeps watch over the heartbeats of attempts: when each was first seen and when its beat last moved.

Owns one invariant: ages are measured on the monotonic clock from what was seen, never read from a file's time. Judging
is ``policy.health``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.policy import health

if TYPE_CHECKING:
    from coordinator.domain.settings import FleetSettings
    from coordinator.fleet.sighting import Sighting
    from coordinator.kit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    beat: int
    first: float
    since: float


class Vigil:
    """One entry per attempt (task and generation) under way; forgotten when it ends."""

    def __init__(self, settings: FleetSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._watches: dict[tuple[str, int], _Watch] = {}

    def judge(self, attempt: tuple[str, int], seen: Sighting, *, timeout_s: float) -> health.Condemned | None:
        """Note what was seen and say whether the attempt may go on (None)."""
        now = self._clock.monotonic()
        last = self._watches.get(attempt)
        if last is None:
            last = _Watch(beat=seen.beat, first=now, since=now)
        elif last.beat != seen.beat:
            last = _Watch(beat=seen.beat, first=last.first, since=now)
        self._watches[attempt] = last
        return health.judge_attempt(
            beat_age_s=now - last.since,
            run_age_s=now - last.first,
            silence_s=self._settings.silence_s,
            timeout_s=timeout_s,
            grace_s=self._settings.grace_s,
        )

    def forget(self, attempt: tuple[str, int]) -> None:
        self._watches.pop(attempt, None)

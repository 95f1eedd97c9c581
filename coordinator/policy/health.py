"""Whether an attempt that is still held may go on.

A verdict is a value; stopping somebody is the steward's. Ages are seconds on the monotonic clock, measured by the one
who looked, so that no clock step and no other host's time can condemn anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.domain.attempt import Ending

OVERDUE_S: Final = 30.0
"""Extra time an agent's own time-out gets, beside the grace, before it is enforced from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condemned:
    """The attempt is to be stopped: how that is recorded, and why in one sentence."""

    ending: Ending
    reason: str


def judge_attempt(
    *, beat_age_s: float, run_age_s: float, silence_s: float, timeout_s: float, grace_s: float
) -> Condemned | None:
    """None: it may go on. ``beat_age_s`` is the time since its heartbeat last moved, ``run_age_s`` since it was seen."""
    if beat_age_s > silence_s:
        return Condemned(ending=Ending.CRASHED, reason=f"no heartbeat for {silence_s:.0f} s, stopped")
    if run_age_s > timeout_s + grace_s + OVERDUE_S:
        return Condemned(
            ending=Ending.OVER_TIME, reason=f"still running {grace_s + OVERDUE_S:.0f} s after its time limit, stopped"
        )
    return None

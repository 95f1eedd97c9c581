"""When agents of a role fail one task after another, it is not the tasks: the role is paused and probed.

A circuit breaker (Nygard, *Release It!*) over distinct tasks: a login that ran out, a provider that is down or a missing
tool would otherwise use up every task's attempts within minutes. A value in, a value out; time comes in as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

FAILURES_TO_OPEN: Final = 5
"""Distinct tasks in a row; fewer happen by chance with hard tasks, more cost a whole backlog."""
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 600.0
HOPELESS_PROBES: Final = 2
"""Probes that failed after which a run that is to end when idle waits no longer for the role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleHealth:
    """``failed`` are tasks that failed since the last success. ``until`` (monotonic) and ``pause_s`` mean something once
    the breaker is open; ``probes`` counts probes that failed; ``last`` is the last reason.
    """

    failed: frozenset[str] = frozenset()
    last: str = ""
    pause_s: float = 0.0
    probes: int = 0
    until: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.pause_s > 0

    @property
    def is_hopeless(self) -> bool:
        return self.is_open and self.probes >= HOPELESS_PROBES

    def refusal(self, role: str, now: float) -> str:
        """Why no task of the role may be started at ``now``; empty: it may (one only, while open)."""
        if not self.is_open or now >= self.until:
            return ""
        return f"role {role} is paused: its last {len(self.failed)} tasks failed in a row ({self.last})"


HEALTHY: Final = RoleHealth()


def after_failure(health: RoleHealth, task_id: str, reason: str, now: float) -> RoleHealth:
    """An agent of the role failed at ``task_id`` without leaving anything to judge."""
    failed = health.failed | {task_id}
    if health.is_open:
        if now < health.until:  # it had been started before the pause
            return replace(health, failed=failed, last=reason)
        pause = min(health.pause_s * 2, LONGEST_PAUSE_S)
        return RoleHealth(failed=failed, last=reason, pause_s=pause, probes=health.probes + 1, until=now + pause)
    if len(failed) < FAILURES_TO_OPEN:
        return replace(health, failed=failed, last=reason)
    return RoleHealth(failed=failed, last=reason, pause_s=FIRST_PAUSE_S, until=now + FIRST_PAUSE_S)

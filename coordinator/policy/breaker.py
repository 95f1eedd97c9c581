"""When agents of a role fail one task after another, it is not the tasks: the role is paused and probed.

A circuit breaker (Nygard, *Release It!*) over distinct tasks: a login that ran out, a provider that is down or a missing
tool would otherwise use up every task's attempts within minutes. What says so itself (a usage limit, a missing login)
pauses the role at once. A value in, a value out; time comes in as an argument.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILURES_TO_OPEN: Final = 5
"""Distinct tasks in a row; fewer happen by chance with hard tasks, more cost a whole backlog."""
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 600.0
LONGEST_LIMIT_S: Final = 6 * 3600.0
"""A usage limit is believed for this long, then asked about again: resets are known to be wrong, and an ask costs nothing."""
HOPELESS_PROBES: Final = 2
"""Probes that failed after which a run that is to end when idle waits no longer for the role."""
_MARGIN_S: Final = 2.0
"""Beyond the moment at which a limit is said to be reset: the other side's clock is another one."""


class Cause(enum.StrEnum):
    """What a pause is for."""

    FAILURES = "failures"
    LIMIT = "limit"
    LOGIN = "login"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleHealth:
    """``failed`` are tasks that failed since the last success. ``until`` (monotonic) and ``pause_s`` mean something once
    the breaker is open; ``probes`` counts probes that failed; ``last`` is the last reason.
    """

    cause: Cause = Cause.FAILURES
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
        return self.is_open and (self.cause is Cause.LOGIN or self.probes >= HOPELESS_PROBES)

    def refusal(self, role: str, now: float) -> str:
        """Why no task of the role may be started at ``now``; empty: it may (one only, while open)."""
        if not self.is_open or now >= self.until:
            return ""
        if self.cause is Cause.FAILURES:
            return f"role {role} is paused: its last {len(self.failed)} tasks failed in a row ({self.last})"
        return f"role {role} is paused: {self.last}"

    def to_json(self, *, now: float, wall: float) -> dict[str, Any]:
        """For a restart; the pause's end becomes wall time, for a monotonic clock begins anew with the machine."""
        return {
            "cause": self.cause.value,
            "failed": sorted(self.failed),
            "last": self.last,
            "pause_s": self.pause_s,
            "probes": self.probes,
            "until": wall + self.until - now,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, now: float, wall: float) -> RoleHealth:
        """Raise ``KeyError``, ``TypeError`` or ``ValueError`` for what is none. No pause is longer than it was, wherever the
        wall clock was set meanwhile."""
        pause_s = min(float(data["pause_s"]), LONGEST_LIMIT_S + _MARGIN_S)
        left_s = min(max(float(data["until"]) - wall, 0.0), pause_s)
        return cls(
            cause=Cause(data["cause"]),
            failed=frozenset(map(str, data["failed"])),
            last=str(data["last"]),
            pause_s=pause_s,
            probes=int(data["probes"]),
            until=now + left_s,
        )


HEALTHY: Final = RoleHealth()


def after_failure(health: RoleHealth, task_id: str, reason: str, now: float) -> RoleHealth:
    """An agent of the role failed at ``task_id`` without leaving anything to judge."""
    failed = health.failed | {task_id}
    if health.is_open:
        if now < health.until:  # it had been started before the pause
            return replace(health, failed=failed)
        return _paused(health, Cause.FAILURES, failed, reason, now)
    if len(failed) < FAILURES_TO_OPEN:
        return replace(health, failed=failed, last=reason)
    return _paused(health, Cause.FAILURES, failed, reason, now)


def after_login(health: RoleHealth, reason: str, now: float) -> RoleHealth:
    """An agent of the role says that it is not logged in: so is none of them, and the pause begins at once."""
    if health.is_open and now < health.until:  # it had been started before the pause
        return health
    return _paused(health, Cause.LOGIN, health.failed, reason, now)


def after_limit(health: RoleHealth, reason: str, now: float, wait_s: float) -> RoleHealth:
    """What the role's agents may use is used up, for ``wait_s`` (0: nobody knows for how long).

    Several say so at about the same time; the pause lasts until the last of the resets that they name.
    """
    if wait_s <= 0:
        if health.is_open and now < health.until:
            return health
        return _paused(health, Cause.LIMIT, health.failed, reason, now)
    pause = min(wait_s, LONGEST_LIMIT_S) + _MARGIN_S
    if health.is_open and now + pause <= health.until:
        return health
    return RoleHealth(cause=Cause.LIMIT, failed=health.failed, last=reason, pause_s=pause, until=now + pause)


def _paused(health: RoleHealth, cause: Cause, failed: frozenset[str], reason: str, now: float) -> RoleHealth:
    """Its first pause, or a longer one after a probe that failed."""
    again = health.is_open and now >= health.until
    pause = min(max(health.pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S) if again else FIRST_PAUSE_S
    probes = health.probes + 1 if again else 0
    return RoleHealth(cause=cause, failed=failed, last=reason, pause_s=pause, probes=probes, until=now + pause)

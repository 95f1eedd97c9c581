"""How well each role is: what its agents' endings say about it, kept in the ledger so that a pause outlives the daemon.

Owns one invariant: a pause for a usage limit or a login ends by a probe that was started after it and works, never by an
agent that had been started before. What opens and closes a role is ``policy.breaker``'s decision.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.attempt import Ending
from coordinator.domain.event import RoleMended, RolePaused
from coordinator.domain.vitals import Doing
from coordinator.policy import breaker
from coordinator.policy.breaker import Cause, RoleHealth

if TYPE_CHECKING:
    from coordinator.domain.vitals import Vitals
    from coordinator.fleet.ledger import Ledger
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock

_log = logging.getLogger(__name__)

FACT: Final = "roles"
"""In the ledger: by role, its health and the attempt that probes it."""

_NOT_ITS_DOING: Final = frozenset({Ending.CANCELLED, Ending.STALE, Ending.STOPPED})
"""Endings that say nothing about the role."""

_THE_AGENTS_FAULT: Final = frozenset(
    {Ending.CRASHED, Ending.FAILED, Ending.STALLED, Ending.UNAVAILABLE, Ending.UNSTARTED}
)
_DAY_S: Final = 86_400.0
_PASSED_S: Final = 0.001
"""A reset that has come before anybody could note it is a known one: only the margin is waited for."""
_FARTHEST_S: Final = 366 * _DAY_S

_TURNS_THAT_PROVE: Final = 2
"""A CLI may count its own "limit reached" as a turn; a second one, or a tool in use, was a model's answer."""


class RoleWatch:
    """Used by the dispatcher. Times are this boot's monotonic clock, in the ledger wall time."""

    def __init__(self, bus: Bus, clock: Clock, ledger: Ledger) -> None:
        self._bus = bus
        self._clock = clock
        self._ledger = ledger
        self._health: dict[str, RoleHealth] = {}
        self._probes: dict[str, tuple[str, int]] = {}
        self._recall()

    def refusals(self) -> dict[str, str]:
        """Roles of which nothing may be started now, with the reason."""
        now = self._clock.monotonic()
        found = {role: health.refusal(role, now) for role, health in self._health.items()}
        return {role: refusal for role, refusal in found.items() if refusal}

    def slots(self) -> dict[str, int]:
        """One probe at a time for a role that is not well."""
        return {role: 1 for role, health in self._health.items() if health.is_open}

    def wake_in_s(self) -> float | None:
        """Until the next pause ends; None when none runs."""
        now = self._clock.monotonic()
        return min((one.until - now for one in self._health.values() if one.until > now), default=None)

    def is_hopeless(self, role: str) -> bool:
        """Whether waiting for the role has become pointless for a run that is to end by itself."""
        return self._health.get(role, breaker.HEALTHY).is_hopeless

    def offered(self, role: str, attempt: tuple[str, int]) -> None:
        """An attempt is about to start; while the role is not well, it is the probe."""
        if self._health.get(role, breaker.HEALTHY).is_open:
            self._probes[role] = attempt
            self._remember()

    def note_ending(
        self, role: str, attempt: tuple[str, int], ending: Ending, reason: str, *, retry_at: float = 0.0
    ) -> Ending:
        """Fold how an attempt ended into its role's health; returns how it is to be recorded: while the role is probed,
        nothing is charged to the task. ``retry_at`` is when a limit is reset (epoch seconds; 0: nobody knows)."""
        before, now = self._health.get(role, breaker.HEALTHY), self._clock.monotonic()
        if ending is Ending.RATE_LIMITED:
            wall = self._clock.now().timestamp()
            text = f"{reason or 'usage limit'}{_reset_at(retry_at, wall)}"
            self._set(
                role,
                before,
                breaker.after_limit(before, text, now, max(retry_at - wall, _PASSED_S) if retry_at else 0.0),
            )
        elif ending is Ending.LOGIN_MISSING:
            self._set(role, before, breaker.after_login(before, reason or "its agents are not logged in", now))
        elif ending in _THE_AGENTS_FAULT:
            self._set(role, before, breaker.after_failure(before, attempt[0], reason, now))
            return Ending.UNAVAILABLE if before.is_open else ending
        elif ending not in _NOT_ITS_DOING:
            self.note_success(role, attempt)
        return ending

    def note_success(self, role: str, attempt: tuple[str, int]) -> None:
        """An agent of the role left something to judge, or is visibly at work."""
        health = self._health.get(role, breaker.HEALTHY)
        if health.is_open and health.cause is not Cause.FAILURES and self._probes.get(role) != attempt:
            return
        if self._health.pop(role, None) is not None:
            self._probes.pop(role, None)
            self._remember()
        if health.is_open:
            self._bus.publish(RoleMended(role=role))

    def note_vitals(self, role: str, attempt: tuple[str, int], vitals: Vitals) -> None:
        """A probe need not end to prove that models answer again."""
        if self._probes.get(role) == attempt and (
            vitals.turns >= _TURNS_THAT_PROVE or vitals.doing == Doing.USING_TOOL
        ):
            self.note_success(role, attempt)

    def _set(self, role: str, before: RoleHealth, after: RoleHealth) -> None:
        if after == before:
            return
        self._health[role] = after
        self._remember()
        now = self._clock.monotonic()
        extra = {"action": "role_paused", "role": role, "pause_s": after.pause_s}
        if after.is_open and (not before.is_open or after.cause is not before.cause):
            text = f"{after.refusal(role, now)}; tried again with one task in {_spoken(after.until - now)}"
            self._bus.publish(RolePaused(role=role, reason=text))
        elif after.until != before.until:
            _log.info("%s", after.refusal(role, now), extra=extra)

    def _remember(self) -> None:
        now, wall = self._clock.monotonic(), self._clock.now().timestamp()
        kept = {
            role: {**health.to_json(now=now, wall=wall), "probe": self._probes.get(role)}
            for role, health in self._health.items()
        }
        self._ledger.fact(FACT, kept)

    def _recall(self) -> None:
        now, wall = self._clock.monotonic(), self._clock.now().timestamp()
        known: Any = self._ledger.read_fact(FACT)
        for role, data in known.items() if isinstance(known, dict) else ():
            try:
                self._health[role] = RoleHealth.from_json(data, now=now, wall=wall)
                if data.get("probe"):
                    task, generation = data["probe"]
                    self._probes[role] = (str(task), int(generation))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                _log.warning("health of role %s is unreadable: %s", role, error, extra={"action": "role_unread"})


def _reset_at(retry_at: float, wall: float) -> str:
    """As the machine's user reads it on the wall; empty when it is not known, or nothing that a calendar has."""
    if not wall < retry_at < wall + _FARTHEST_S:
        return ""
    moment = datetime.fromtimestamp(retry_at).astimezone()
    return f", resets at {moment:%H:%M}" if retry_at - wall < _DAY_S else f", resets on {moment:%d %B at %H:%M}"


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else (f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h")

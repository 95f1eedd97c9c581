"""The watch: one event goes to telemetry and to the detectors, one look turns what they say into incidents.

Owns one invariant: what it decides follows from the events, the looks and their times alone, so that a recording of these,
replayed, gives the same incidents. It publishes and stores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Ending
from coordinator.domain.event import (
    AttemptEnded,
    GateJudged,
    KnobTurned,
    RequestServed,
    RolePaused,
    TaskChanged,
    TaskLanded,
)
from coordinator.domain.knob import ChangeAuthor
from coordinator.domain.served_call import UPSTREAM_FAULTS, CallError, error_of, tells_of_upstream
from coordinator.policy.anomaly import AnomalyDetector
from coordinator.policy.incident_book import IncidentBook
from coordinator.policy.telemetry import UNJUDGED, Telemetry, first_token_s, seconds_per_token

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.domain.event import Event
    from coordinator.domain.incident import Incident
    from coordinator.policy.telemetry_cell import TelemetryCell

WATCHED: Final[tuple[type[Event], ...]] = (
    AttemptEnded,
    GateJudged,
    KnobTurned,
    RequestServed,
    RolePaused,
    TaskChanged,
    TaskLanded,
)
"""No other event makes a difference."""

_DECLARED: Final = frozenset({ChangeAuthor.BLOCK, ChangeAuthor.PERSON})
"""Whose changes are so large, or so unknown, that what was usual before them says nothing any more."""
WAITED_S: Final = 1.0
"""A call that was held longer has waited."""
DEEP: Final = 4
"""So many calls that wait for an upstream are a queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a look found: incidents that began or changed, those that are over, and the minute that was completed."""

    changed: tuple[Incident, ...] = ()
    ended: tuple[Incident, ...] = ()
    minute: TelemetryCell | None = None


class Watch:
    """``take`` each event, ``look`` every 5 s. Times are monotonic seconds that never go back."""

    def __init__(self, began_s: float, *, first_incident: int = 1, robust_z: Sequence[str] = ()) -> None:
        self.book = IncidentBook(first_incident)
        self.detector = AnomalyDetector(robust_z)
        self.telemetry = Telemetry(began_s)
        self._busy_s = 0.0
        """Seconds that agents were at work since the last look, all agents together."""
        self._busy_at_s = began_s
        self._calls = 0
        self._looked_s = began_s
        self._restart = False

    def take(self, event: Event, at_s: float) -> None:
        self._spend_time(at_s)
        self.telemetry.take(event)
        if isinstance(event, RequestServed):
            self._served(event, at_s)
        elif isinstance(event, AttemptEnded):
            if event.ending not in UNJUDGED:
                self.detector.judge("landing", event.ending == Ending.LANDED, role=event.role)
                if event.duration_s > 0:
                    role = event.role
                    self.detector.measure("attempt_s", event.duration_s, at_s, group=role, role=role)
        elif isinstance(event, GateJudged):
            if event.verdict != "broken":
                self.detector.judge("gate", event.verdict == "passed")
                self.detector.measure("gate_s", event.took_s, at_s, group="", role="")
        elif isinstance(event, KnobTurned):
            self.book.note_change(at_s, f"{event.knob} from {event.old:g} to {event.new:g} by {event.author}")
            self._restart = self._restart or event.author in _DECLARED
        elif isinstance(event, RolePaused):
            self.book.note_change(at_s, f"role {event.role} was paused")

    def _spend_time(self, at_s: float) -> None:
        """Before anything changes: the agents that are busy now have been since the last change."""
        self._busy_s += self.telemetry.busy * max(0.0, at_s - self._busy_at_s)
        self._busy_at_s = max(at_s, self._busy_at_s)

    def _served(self, call: RequestServed, at_s: float) -> None:
        detector, role, error = self.detector, call.role, error_of(call)
        self._calls += 1
        detector.judge("shed", error is CallError.SHED, role=role)
        detector.judge("cache", call.collapsed == "cache", role=role)
        detector.judge("dedup", bool(call.collapsed) and call.collapsed != "cache", role=role)
        detector.judge("wait", call.wait_s > WAITED_S, role=role)
        if not tells_of_upstream(call):
            return
        upstream = call.upstream
        detector.judge("fault", error in UPSTREAM_FAULTS, role=role, scope=upstream)
        detector.judge("late", error is CallError.LATE, role=role, scope=upstream)
        detector.judge("limited", error is CallError.LIMITED, role=role, scope=upstream)
        if error is not None:
            return
        if call.cache_read_tokens or call.input_tokens:
            detector.judge("prompt_cache", call.cache_read_tokens > 0, role=role, scope=upstream)
        group = f"{role}|{call.model}"
        detector.measure("call_s", call.took_s - call.wait_s, at_s, group=group, role=role, scope=upstream)
        if call.priced and call.cost_usd > 0:
            detector.measure("cost_usd", call.cost_usd, at_s, group=group, role=role)
        first_s, token_s = first_token_s(call), seconds_per_token(call)
        if first_s is not None:
            detector.measure("first_token_s", first_s, at_s, group=call.model, role=role, scope=upstream)
        if token_s is not None:
            detector.measure("token_s", token_s, at_s, group=group, role=role, scope=upstream)

    def look(self, at_s: float, standings: Mapping[str, float]) -> Sight:
        """``standings``: what was looked at; ``waiting|upstream=NAME`` says how many calls wait for it."""
        self._spend_time(at_s)
        for key, value in sorted(standings.items()):
            kind, _, upstream = key.partition("|upstream=")
            if kind == "waiting":
                self.detector.judge("depth", value >= DEEP, scope=upstream)
        self.detector.count("calls", self._calls, self._busy_s, at_s - self._looked_s)
        self._calls, self._busy_s, self._looked_s = 0, 0.0, at_s
        minute = self.telemetry.look(at_s, standings)
        alarms = self.detector.look(at_s)
        if self._restart:
            self._restart = False
            alarms += self.detector.restart(at_s)
        changed = self.book.take(alarms, at_s)
        return Sight(changed=tuple(changed), ended=tuple(self.book.close_quiet(at_s)), minute=minute)

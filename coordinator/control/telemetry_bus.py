"""TelemetryBus: feeds the watch from the bus, tells of incidents, keeps telemetry and incidents in the ledger.

Owns one invariant: an incident that was told of is in the ledger, and is ended there by this daemon or, if it died, by the next.
What the watch makes of events is ``policy.watch``'s; nothing is changed from here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from coordinator.control.recording import Recording
from coordinator.domain.errors import DaemonUnreachable
from coordinator.domain.event import IncidentEnded, IncidentSeen
from coordinator.policy.telemetry import MINUTE_S, WINDOWS_S, figures_of
from coordinator.policy.telemetry_cell import TelemetryCell
from coordinator.policy.watch import WATCHED, Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from coordinator.domain.control_settings import ControlSettings
    from coordinator.domain.event import Published
    from coordinator.domain.incident import Incident
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store
    from coordinator.policy.watch import Sight

_log = logging.getLogger(__name__)

HOUR_S: Final = 3600.0
_MINUTES_KEPT: Final = timedelta(days=1)
_HOURS_KEPT: Final = timedelta(days=90)
_INCIDENTS_KEPT: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryView:
    """What other threads may read: replaced whole at each look."""

    figures: Mapping[str, Mapping[str, Any]]
    """By name of the window."""
    begun: int = 0
    """Incidents of this daemon."""
    open: tuple[Incident, ...] = ()
    watched: int = 0
    """Metrics that the detectors know."""


class TelemetryBus:
    """``take`` is a tap of the bus, ``look`` is called every 5 s. ``standings`` says how upstreams stand; it may raise
    ``DaemonUnreachable`` while there is no gateway."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        store: Store,
        settings: ControlSettings,
        standings: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]],
        top: Path,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._store = store
        self._standings = standings
        began_s = clock.monotonic()
        rows = store.query("incident_last")
        first = rows[0]["number"] + 1 if rows else 1
        self._watch = Watch(began_s, first_incident=first, robust_z=settings.robust_z)
        self._recording = self._record(settings, top, began_s, first)
        self._hour: tuple[datetime, TelemetryCell] | None = None
        self._begun = 0
        self._told: dict[int, str] = {}
        """At which level, of incidents that go on."""
        self.view = TelemetryView(figures={})

    def _record(self, settings: ControlSettings, top: Path, began_s: float, first: int) -> Recording | None:
        if not settings.record:
            return None
        try:
            file = (top / settings.record).open("w", encoding="utf-8")
        except OSError as error:
            _log.warning("telemetry is not recorded: %s", error, extra={"action": "recording_failed"})
            return None
        return Recording(file, began_s, first_incident=first, robust_z=settings.robust_z)

    def begin(self, states: Iterable[tuple[str, str]]) -> None:
        """What is known from before: ``states`` of tasks, the last hour of telemetry, incidents that nobody ended."""
        self._watch.telemetry.know(states)
        now = self._clock.now()
        since = (now - timedelta(seconds=HOUR_S)).isoformat()
        rows = self._store.query("telemetry_since", span_s=MINUTE_S, since=since)
        minutes = [TelemetryCell() for _ in range(round(HOUR_S / MINUTE_S))]
        for row in rows:
            age_s = (now - datetime.fromisoformat(row["at"])).total_seconds()
            if 0 <= age_s < HOUR_S:  # one that a clock set wrong wrote is not known to be of any minute
                minutes[-1 - int(age_s / MINUTE_S)].merge(TelemetryCell.from_json(json.loads(row["data"])))
        self._watch.telemetry.restore(minutes)
        self._store.execute("incidents_abandon", at=now.isoformat())

    def take(self, published: Published) -> None:
        event = published.event
        if not isinstance(event, WATCHED):
            return
        at_s = self._clock.monotonic()
        self._watch.take(event, at_s)
        if self._recording is not None:
            self._recording.event(event, at_s)

    async def look(self) -> None:
        """A tick."""
        standings = await self._standing()
        at_s = self._clock.monotonic()
        if self._recording is not None:
            self._recording.look(at_s, standings)
        sight = self._watch.look(at_s, standings)
        self._tell(sight, at_s)
        if sight.minute is not None:
            self._keep(sight.minute)
        self.view = TelemetryView(
            figures={"1m": self._figures(WINDOWS_S["1m"]), "5m": self._figures(WINDOWS_S["5m"])},
            begun=self._begun,
            open=self._watch.book.open,
            watched=len(self._watch.detector),
        )

    def close(self) -> None:
        """Keep the minute under way and end the recording. Safe to call twice."""
        minute = self._watch.telemetry.end()
        if minute is not None:
            self._keep(minute)
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.close()

    async def _standing(self) -> dict[str, float]:
        try:
            upstreams = await self._standings()
        except DaemonUnreachable:
            return {}
        found: dict[str, float] = {}
        for one in upstreams:
            label = f"|upstream={one['name']}"
            found[f"waiting{label}"] = float(one["waiting"])
            found[f"in_flight{label}"] = float(one["in_flight"])
            found[f"breakers_open{label}"] = float(len(one["breakers"]))
        return found

    def figures(self, window: str) -> dict[str, Any]:
        """Of the last ``1m``, ``5m``, ``15m`` or ``1h``, this moment included."""
        return self._figures(WINDOWS_S[window])

    def _figures(self, window_s: float) -> dict[str, Any]:
        return figures_of(self._watch.telemetry.window(window_s), window_s)

    # -- told and kept -------------------------------------------------------------------------------------------------

    def _tell(self, sight: Sight, at_s: float) -> None:
        for incident in (*sight.changed, *sight.ended):
            began = self._wall(incident.began_s, at_s)
            ended = self._wall(incident.ended_s, at_s) if incident.ended_s is not None else None
            self._store.execute(
                "incident_put",
                number=incident.number,
                began=began.isoformat(),
                ended=ended.isoformat() if ended is not None else None,
                level=incident.level.value,
                cause=incident.cause,
                data=json.dumps(self._dated(incident, at_s)),
            )
            self._publish(incident)

    def _publish(self, incident: Incident) -> None:
        number, cause = incident.number, incident.cause
        if incident.ended_s is not None:
            lasted_s = round(incident.ended_s - incident.began_s, 1)
            self._bus.publish(IncidentEnded(cause=cause, lasted_s=lasted_s, number=number))
            self._told.pop(number, None)
            return
        level, metrics, size = incident.level.value, incident.metrics, incident.size
        if self._told.get(number) == level:
            return
        self._begun += number not in self._told
        self._told[number] = level
        self._bus.publish(IncidentSeen(cause=cause, level=level, metrics=metrics, number=number, size=size))

    def _wall(self, moment_s: float, at_s: float) -> datetime:
        return self._clock.now() - timedelta(seconds=at_s - moment_s)

    def _dated(self, incident: Incident, at_s: float) -> dict[str, Any]:
        """With times that mean something tomorrow."""

        def dated(moment_s: float | None) -> str | None:
            return None if moment_s is None else self._wall(moment_s, at_s).isoformat()

        alarms = [
            {
                "began": dated(one.began_s),
                "ended": dated(one.ended_s),
                "level": one.level.value,
                "metric": one.metric,
                "role": one.role,
                "scope": one.scope,
                "size": one.size,
            }
            for one in incident.alarms
        ]
        return {"alarms": alarms, "change": incident.change, "size": incident.size}

    def _keep(self, minute: TelemetryCell) -> None:
        """The minute, and the hour that it is part of."""
        now = self._clock.now()
        hour = now.replace(minute=0, second=0, microsecond=0)
        if self._hour is None or self._hour[0] != hour:
            rows = self._store.query("telemetry_at", span_s=HOUR_S, at=hour.isoformat())
            known = TelemetryCell.from_json(json.loads(rows[0]["data"])) if rows else TelemetryCell()
            self._hour = hour, known
            self._trim(now)
        self._hour[1].merge(minute)
        with self._store.transaction():
            for span_s, at, cell in ((MINUTE_S, now, minute), (HOUR_S, hour, self._hour[1])):
                data = json.dumps(cell.to_json())
                self._store.execute("telemetry_put", span_s=span_s, at=at.isoformat(), data=data)

    def _trim(self, now: datetime) -> None:
        for span_s, kept in ((MINUTE_S, _MINUTES_KEPT), (HOUR_S, _HOURS_KEPT)):
            self._store.execute("telemetry_trim", span_s=span_s, before=(now - kept).isoformat())
        self._store.execute("incidents_trim", before=(now - _INCIDENTS_KEPT).isoformat())

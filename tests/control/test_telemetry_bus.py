"""From the bus to the ledger, verbs and metrics, on a clock that tests turn; and a replay that decides the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.control.meters import telemetry_meters
from coordinator.control.recording import replay
from coordinator.control.telemetry_bus import TelemetryBus
from coordinator.domain.control_settings import ControlSettings
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.event import IncidentEnded, IncidentSeen, TaskChanged
from coordinator.kit.bus import Bus
from coordinator.kit.store import Store
from coordinator.surface.metrics import exposition
from tests.policy.served import served

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from coordinator.domain.event import Published

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class TurnedClock:
    at_s: float = 1000.0

    def monotonic(self) -> float:
        return self.at_s

    def now(self) -> datetime:
        return START + timedelta(seconds=self.at_s - 1000.0)

    async def sleep(self, seconds: float) -> None:
        self.at_s += seconds


@dataclass
class Room:
    clock: TurnedClock
    store: Store
    top: Path
    settings: ControlSettings = field(default_factory=ControlSettings)
    standing: list[dict[str, Any]] | None = None
    told: list[Published] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A daemon's life begins."""
        self.bus = Bus(self.clock)
        self.bus.tap(self.told.append)
        self.control = TelemetryBus(self.bus, self.clock, self.store, self.settings, self._standings, self.top)
        self.bus.tap(self.control.take)
        self.control.begin([("old", "running")])

    async def _standings(self) -> Sequence[dict[str, Any]]:
        if self.standing is None:
            raise DaemonUnreachable("no gateway")
        return self.standing

    async def pass_s(self, seconds: float, **call: Any) -> None:
        """Three calls in each 5 s."""
        for number in range(round(seconds / 5)):
            for part in range(3):
                took_s = call.get("took_s", 6.0) + 0.3 * ((number * 3 + part) % 7)
                self.bus.publish(served(**{**call, "took_s": took_s}))
            self.clock.at_s += 5
            await self.control.look()

    def incidents(self, kind: type) -> list[Any]:
        return [one.event for one in self.told if isinstance(one.event, kind)]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    store = Store.open(tmp_path / "ledger.db")
    yield Room(TurnedClock(), store, tmp_path)
    store.close()


async def test_minutes_and_hours_are_kept_and_known_to_the_next_daemon(room: Room) -> None:
    await room.pass_s(600)
    minutes = room.store.query("telemetry_since", span_s=60.0, since="")
    hours = room.store.query("telemetry_since", span_s=3600.0, since="")
    assert (len(minutes), len(hours)) == (10, 1)
    assert room.control.figures("1h")["calls"] == 360
    room.clock.at_s += 300
    room.start()
    assert room.control.figures("1h")["calls"] == 360
    assert room.control.figures("5m")["calls"] == 0
    await room.pass_s(60)
    assert room.control.figures("1h")["agents_busy"] == 1


async def test_a_short_life_is_kept_as_well(room: Room) -> None:
    room.bus.publish(served())
    room.control.close()
    room.control.close()
    kept = room.store.query("telemetry_since", span_s=60.0, since="")
    assert len(kept) == 1
    room.start()
    assert room.control.figures("5m")["calls"] == 1


async def test_an_outage_is_one_incident_from_its_first_news_to_its_end(room: Room) -> None:
    await room.pass_s(1800)
    assert not room.incidents(IncidentSeen)
    await room.pass_s(60, status=500, output_tokens=0, first_byte_s=0.0)
    first = room.incidents(IncidentSeen)[0]
    assert first.number == 1
    assert {"fault", "fault@up"} <= set(first.metrics)
    assert first.cause == "calls fail (upstream up)"
    assert [one.level for one in room.incidents(IncidentSeen)] == ["critical"]  # of all told once
    assert [row["number"] for row in room.store.query("incidents_open")] == [1]
    await room.pass_s(3600)
    ended = room.incidents(IncidentEnded)
    assert [one.number for one in ended] == [1]
    row = room.store.query("incident_get", number=1)[0]
    assert row["ended"] > row["began"]
    assert row["began"] == (START + timedelta(seconds=1810)).isoformat()


async def test_what_a_dead_daemon_left_open_is_ended_and_numbers_go_on(room: Room) -> None:
    await room.pass_s(1800)
    await room.pass_s(60, status=500, output_tokens=0, first_byte_s=0.0)
    room.start()
    assert not room.store.query("incidents_open")
    await room.pass_s(1800)
    await room.pass_s(60, status=500, output_tokens=0, first_byte_s=0.0)
    assert [row["number"] for row in room.store.query("incidents_open")] == [2]


async def test_metrics_have_no_sample_for_what_was_not_seen(room: Room) -> None:
    await room.pass_s(60)
    text = exposition(telemetry_meters(room.control.view))[0].decode()
    assert 'orchestrator_telemetry_calls_per_s{window="1m"} 0.6' in text
    assert 'orchestrator_telemetry_seconds{metric="token_s",quantile="p95",window="1m"}' in text
    assert "orchestrator_telemetry_gate_pass_rate{" not in text
    assert "orchestrator_metrics_watched" in text


async def test_upstreams_that_queue_are_seen_by_looking(room: Room) -> None:
    room.standing = [{"breakers": [], "in_flight": 2, "name": "up", "waiting": 0}]
    await room.pass_s(1800)
    room.standing = [{"breakers": [{}], "in_flight": 2, "name": "up", "waiting": 9}]
    await room.pass_s(30)
    assert room.control.figures("1m")["breakers"] == {"up": 1.0}
    assert room.incidents(IncidentSeen)[0].metrics == ("depth", "depth@up")


async def test_a_recording_replayed_decides_the_same(room: Room) -> None:
    room.settings = ControlSettings(record="seen.jsonl")
    room.start()
    room.bus.publish(TaskChanged(task="a", generation=1, old="ready", new="running", reason=""))
    await room.pass_s(1800)
    await room.pass_s(60, status=500, output_tokens=0, first_byte_s=0.0)
    await room.pass_s(1800)
    await room.pass_s(40, ending="late", status=0)
    room.control.close()
    with (room.top / "seen.jsonl").open() as file:
        again = replay(file, "seen.jsonl")
    kept = room.store.query("incidents", limit=10)
    assert len(kept) == 2
    assert [(one.number, one.cause, one.level.value) for one in again] == [
        (row["number"], row["cause"], row["level"]) for row in kept
    ]
    assert again[0].began_s - 1000 == (datetime.fromisoformat(kept[0]["began"]) - START).total_seconds()
    with pytest.raises(BadInput, match="line"):
        replay(['{"began_s": 0, "first_incident": 1, "robust_z": []}', "{}"], "broken")

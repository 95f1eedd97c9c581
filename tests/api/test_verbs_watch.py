"""Telemetry and incidents as a person and a program read them, with a daemon and without."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.control.telemetry_bus import TelemetryBus
from coordinator.domain.control_settings import ControlSettings
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.policy.telemetry_cell import TelemetryCell
from tests.api.test_verbs import shown
from tests.api.test_verbs_gateway import ask
from tests.policy.served import served

if TYPE_CHECKING:
    from tests.api.conftest import Place


async def no_gateway() -> list[dict[str, Any]]:
    raise DaemonUnreachable("there is none")


def watched(place: Place) -> TelemetryBus:
    live = place.live
    telemetry = TelemetryBus(live.bus, live.clock, live.store, ControlSettings(), no_gateway, live.layout.repository)
    live.bus.tap(telemetry.take)
    live.telemetry = telemetry  # type: ignore[attr-defined]
    return telemetry


def keep_incident(place: Place, number: int, *, ended: bool) -> None:
    began = place.live.clock.now() - timedelta(minutes=30)
    alarm = {
        "began": began.isoformat(), "ended": None, "level": "critical", "metric": "fault", "role": "claude",
        "scope": "team", "size": "60% instead of 0.01",
    }  # fmt: skip
    place.live.store.execute(
        "incident_put",
        number=number,
        began=began.isoformat(),
        ended=(began + timedelta(minutes=5)).isoformat() if ended else None,
        level="critical",
        cause="calls fail (upstream team)",
        data=json.dumps({"alarms": [alarm], "change": "", "size": alarm["size"]}),
    )


async def test_live_telemetry_is_of_this_moment(place: Place) -> None:
    watched(place)
    for _ in range(3):
        place.live.bus.publish(served(role="claude"))
    reply = await ask(place, "telemetry", window="1m")
    assert (reply.data["calls"], reply.data["until"]) == (3, None)
    text = shown(place, "telemetry", reply)
    assert "3 model calls in the last 1m" in text
    assert "token_s, claude" in text
    assert "- of calls" not in text
    assert "- passed" in text  # nobody judged anything: no sample, not 0 %


async def test_without_a_daemon_the_ledger_tells_up_to_its_last_minute(place: Place) -> None:
    assert (await ask(place, "telemetry", live=False)).data["calls"] == 0
    cell, now = TelemetryCell(), place.live.clock.now()
    cell.count("calls", 4)
    for span_s, age in ((60.0, timedelta(hours=2)), (60.0, timedelta(hours=9)), (3600.0, timedelta(hours=9))):
        at = (now - age).isoformat()
        place.live.store.execute("telemetry_put", span_s=span_s, at=at, data=json.dumps(cell.to_json()))
    reply = await ask(place, "telemetry", live=False, window="1h")
    assert (reply.data["calls"], reply.data["until"]) == (4, (now - timedelta(hours=2)).isoformat())
    assert (await ask(place, "telemetry", live=False, window="1d")).data["calls"] == 4


async def test_incidents_are_listed_shown_and_in_the_status(place: Place) -> None:
    assert "No incident" in shown(place, "incidents list", await ask(place, "incidents list"))
    keep_incident(place, 1, ended=True)
    keep_incident(place, 2, ended=False)
    assert [one["number"] for one in (await ask(place, "incidents list")).data["incidents"]] == [1, 2]
    still = await ask(place, "incidents list", open=True)
    assert [one["number"] for one in still.data["incidents"]] == [2]
    assert "goes on" in shown(place, "incidents list", still)
    text = shown(place, "incidents show", await ask(place, "incidents show", number=2))
    assert "calls fail (upstream team)" in text
    assert "60% instead of 0.01" in text
    status = await ask(place, "status", live=False)
    assert [one["number"] for one in status.data["incidents"]] == [2]
    assert "coordinator incidents show 2" in shown(place, "status", status)
    with pytest.raises(BadInput):
        await ask(place, "incidents show", number=3)


async def test_a_recording_is_replayed_and_a_bad_one_named(place: Place) -> None:
    file = place.desk.root / "seen.jsonl"
    head = {"began_s": 0.0, "first_incident": 1, "robust_z": []}
    fault = served(status=500).to_json()
    lines: list[dict[str, Any]] = [head]
    for at in range(300):
        data = fault if at >= 250 else served().to_json()
        lines += [{"at_s": 5.0 * at, "event": "RequestServed", "data": data}, {"at_s": 5.0 * at + 1, "look": {}}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reply = await ask(place, "telemetry", live=False, replay=str(file))
    assert [one["cause"] for one in reply.data["incidents"]] == ["calls fail (upstream up)"]
    assert "goes on" in shown(place, "telemetry", reply)
    with pytest.raises(BadInput):
        await ask(place, "telemetry", live=False, replay=str(place.desk.root / "none"))

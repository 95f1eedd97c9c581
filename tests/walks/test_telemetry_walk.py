"""What a real fleet did is in its telemetry, live and afterwards, and what was recorded of it can be replayed."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

from tests.waiting import wait_until
from tests.walks.test_gateway_walk import CALL, house, provider

if TYPE_CHECKING:
    from tests.walks.house import House
    from tests.walks.test_gateway_walk import Provider

__all__ = ["house", "provider"]  # fixtures


def telemetry(house: House, window: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(house.command("telemetry", "--window", window, "--json").stdout)
    return found


def metrics(house: House) -> str:
    url = json.loads(house.command("status", "--json").stdout)["gateway"]["url"]
    open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    return str(open_url(f"{url}/metrics").read(), "utf-8")


def test_a_fleet_at_work_is_seen_while_it_is_and_afterwards(house: House, provider: Provider) -> None:
    settings = house.top / "coordinator.toml"
    settings.write_text(settings.read_text() + '\n[control]\nrecord = ".coordinator/seen.jsonl"\n')
    house.task("t", f"{CALL}\n{CALL}")
    house.task("bad", "exit 3", max_attempts=1)
    daemon = house.start("run")
    try:
        wait_until(lambda: house.states() == {"t": "completed", "bad": "failed"}, 60, what="both are settled")
        live = telemetry(house, "1m")
        shown = 'orchestrator_telemetry_landing_rate{window="1m"} 0.5'
        wait_until(lambda: shown in metrics(house), 20, what="metrics show the last look")
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert (live["calls"], live["landed"], live["gate_pass_rate"], live["landing_rate"]) == (2, 1, 1.0, 0.5)
    assert live["spreads"]["call_s"]["count"] == 2
    assert live["spreads"]["token_s"] is None
    after = telemetry(house, "1h")
    assert (after["calls"], after["landed"], after["agents_busy"]) == (2, 1, None)
    replayed = house.command("telemetry", "--replay", str(house.top / ".coordinator" / "seen.jsonl"), "--json")
    assert json.loads(replayed.stdout) == {"incidents": []}
    kinds = [json.loads(line).get("event") for line in (house.top / ".coordinator/seen.jsonl").read_text().splitlines()]
    assert kinds.count("RequestServed") == 2

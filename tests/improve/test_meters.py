from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.improve.meters import discovery_meters
from coordinator.surface.metrics import exposition
from tests.improve.rig import FAULTS, Rig, commit

if TYPE_CHECKING:
    from pathlib import Path


def samples(rig: Rig) -> dict[str, float]:
    body, _ = exposition(discovery_meters(rig.store))
    lines = (line for line in body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_the_numbers_are_those_of_the_ledger_and_a_tool_that_was_never_asked_has_none(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    rig = Rig(repository, tools=("ruff",))
    assert samples(rig) == {}
    await rig.discovery.scan(write=True)
    found = samples(rig)
    assert found['orchestrator_findings{severity="low",state="queued",tool="ruff"}'] == 4
    assert found['orchestrator_findings{severity="medium",state="open",tool="ruff"}'] == 1
    assert found['orchestrator_finding_fates_total{fate="found",tool="ruff"}'] == 6
    assert found['orchestrator_scan_ok{tool="ruff"}'] == 1
    assert abs(found['orchestrator_scan_looked_at_seconds{tool="ruff"}'] - rig.clock.now().timestamp()) < 60
    assert not any("ruff-format" in name for name in found)
    commit(repository, {"ruff.toml": "no-such-option = 1\n", "shop/till.py": "x = 1\n"})
    await rig.discovery.scan(write=True)
    assert samples(rig)['orchestrator_scan_ok{tool="ruff"}'] == 0
    commit(repository, {"ruff.toml": None})
    await rig.discovery.scan(write=True)
    assert samples(rig)['orchestrator_finding_fates_total{fate="fixed",tool="ruff"}'] == 2

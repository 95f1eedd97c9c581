"""What is shown of an agent at work: in few words, from its own vitals, and judged as the daemon judges."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api.activity import activity, shown_of, usage
from coordinator.api.desk import LiveAgent, live_agents
from coordinator.domain.attempt import ClaimRecord
from coordinator.domain.vitals import Doing, Vitals
from coordinator.kit import lock
from coordinator.policy.health import HealthDiagnosis, HealthState
from coordinator.surface.live import _agent
from tests.api.test_verbs import WORKING, add, ask, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.conftest import Place


def _vitals(doing: str = Doing.WORKING, *, seconds: float = 40.0, now: float = 1000.0, **more: Any) -> Vitals:
    moved = {"busy_at": now - 3, "changed_at": now - 100, "progress_at": now - 30}
    known = {"doing": doing, "doing_since": now - seconds, "seen_at": now, "started_at": now - 200, **moved}
    return Vitals(**{**known, **more})


@pytest.mark.parametrize(
    ("vitals", "said"),
    [
        (None, ""),
        (_vitals(Doing.THINKING, seconds=12), "thinking 12 s"),
        (_vitals(Doing.THINKING, seconds=-5), "thinking 0 s"),
        (_vitals(Doing.USING_TOOL, tool="Bash", tool_limit_s=120.0), "using Bash 40 s of 120 s"),
        (_vitals(Doing.USING_TOOL, tool="Bash", seconds=200), "using Bash 3 min 20 s"),
        (_vitals(Doing.USING_TOOL), "using a tool 40 s"),
        (_vitals(Doing.FINISHED, seconds=25), "finished 25 s ago"),
        (_vitals(Doing.STARTING), "starting"),
        (_vitals(busy_at=0.0), "working, quiet 30 s"),
        (_vitals("dancing"), "working"),
    ],
)
def test_what_it_does_in_a_few_words(vitals: Vitals | None, said: str) -> None:
    assert activity(vitals) == said


def test_what_it_uses() -> None:
    assert usage(shown_of(_vitals(memory_bytes=310 * 2**20, turns=1, cost_usd=0.12))) == "310 MB, 1 turn, 0.12 USD"
    assert usage(shown_of(None)) == ""


@pytest.fixture
def at_work(place: Place) -> Iterator[Vitals]:
    """An attempt that is held by this process, in a silent build."""
    add(place, "a", *WORKING, generation=1)
    host, boot, pid, started = lock.own_identity()
    record = ClaimRecord(agent="agent-1", boot=boot, generation=1, host=host, pid=pid, started=started, task="a")
    lock.write_record(place.desk.layout.claim_record("a"), record)
    place.ledger.record("a", 1, agent="agent-1", pid=pid, host=host, claimed_at="2030-01-01T00:00:00+00:00")
    now = place.desk.clock.monotonic()
    vitals = _vitals(
        Doing.USING_TOOL, now=now, boot=boot, tool="Bash", tool_limit_s=120.0, memory_bytes=310 * 2**20, turns=12
    )
    _beat(place, vitals)
    held = lock.acquire(place.desk.layout.claim_lock("a"))
    assert held is not None
    with held:
        yield vitals


def _beat(place: Place, vitals: Vitals) -> None:
    attempt = place.desk.layout.attempt("a", 1)
    attempt.mkdir(parents=True, exist_ok=True)
    (attempt / "heartbeat").write_text(json.dumps({"state": "running", "note": "n", "vitals": vitals.to_json()}))


async def test_explain_tells_what_is_made_of_a_running_attempt(place: Place, at_work: Vitals) -> None:
    reply = await ask(place, "explain", live=False, task="a")
    health = reply.data["attempts"][0]["health"]
    assert health["state"] == "using_tool"
    assert health["activity"] == "using Bash 40 s of 120 s"
    text = " ".join(shown(place, "explain", reply).split())
    assert "using tool: Bash at work for 40 s of 120 s (its own time-out)" in text
    assert "310 MB, 12 turns" in text
    _beat(place, replace(at_work, doing=Doing.WORKING))
    settings = replace(place.desk.settings, fleet=replace(place.desk.settings.fleet, stall_s=2.0))
    place.desk = replace(place.desk, settings=settings)
    assert (await ask(place, "explain", live=False, task="a")).data["attempts"][0]["health"]["state"] == "stalled"


async def test_the_daemons_word_counts_more_than_a_look(place: Place, at_work: Vitals) -> None:
    agent = LiveAgent(name="agent-1", generation=1, pid=1, since_s=1.0, task="a", health="quiet", health_reason="Q 1 s")
    place.live.seen = replace(place.live.seen, agents=(agent,))
    health = (await ask(place, "explain", task="a")).data["attempts"][0]["health"]
    assert (health["state"], health["reason"]) == ("quiet", "Q 1 s")
    reply = await ask(place, "agents list")
    assert "quiet: Q 1 s" in shown(place, "agents list", reply)


async def test_status_and_the_list_of_agents_show_it_without_a_daemon(place: Place, at_work: Vitals) -> None:
    status = await ask(place, "status", live=False)
    assert "using Bash 40 s of 120 s, 310 MB, 12 turns" in shown(place, "status", status)
    listed = await ask(place, "agents list", live=False)
    assert listed.data["outside"][0]["activity"] == "using Bash 40 s of 120 s"
    assert "using Bash 40 s of 120 s, 310 MB" in " ".join(shown(place, "agents list", listed).split())


@dataclass(frozen=True)
class _Hand:
    adopted: bool = False
    generation: int | None = 1
    name: str = "agent-1"
    pid: int = 7
    since_s: float = 60.0
    task: str | None = "a"


async def test_the_live_view_shows_it(place: Place, at_work: Vitals) -> None:
    found = HealthDiagnosis(state=HealthState.QUIET, reason="a reason")
    layout = place.desk.layout
    (agent,) = live_agents(layout, [_Hand()], str.upper, lambda *_: found)
    assert (agent.activity, agent.turns, agent.health) == ("using Bash 40 s of 120 s", 12, "quiet")
    (idle, plain) = live_agents(layout, [_Hand(task=None), _Hand()], str.upper)
    assert (idle.activity, idle.health, plain.health) == ("", "", "")
    first, second = ("".join(span.text for span in row) for row in _agent(agent, 100))
    assert "running" in first
    assert "using Bash 40 s of 120 s · 310 MB, 12 turns · n" in second
    place.live.seen = replace(place.live.seen, agents=(plain,))
    text = shown(place, "agents list", await ask(place, "agents list"))
    assert "using Bash 40 s of 120 s, 310 MB, 12 turns" in text

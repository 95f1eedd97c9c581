"""Decisions are written down before they act, and outcomes find them."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from coordinator.control.feedback import FeedbackCollector
from coordinator.control.model_router import ModelRouter
from coordinator.domain.control_settings import RouterSettings
from coordinator.domain.errors import BadInput
from coordinator.domain.event import AttemptEnded, CallsCounted, FindingsFolded, TaskLanded
from coordinator.domain.model_choice import ModelQuestion
from coordinator.domain.settings import GatewaySettings
from coordinator.domain.task import Task, TaskState
from coordinator.fleet.ledger import Ledger
from coordinator.gateway.quotes import PriceQuotes
from coordinator.gateway.upstream import upstreams_of
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

MODELS = ("claude-haiku-4-5", "claude-opus-4-5 via anthropic")


class Room:
    """A router and a collector on a real store and bus."""

    def __init__(self, path: Path, settings: RouterSettings | None = None) -> None:
        self.clock = SystemClock()
        self.store = Store.open(path / "ledger.db")
        self.bus = Bus(self.clock)
        self.barred: tuple[str, ...] = ()
        self.settings = settings or RouterSettings()
        gateway = GatewaySettings()
        quotes = PriceQuotes(gateway, upstreams_of(gateway, {}).known, lambda: self.clock.now().date())
        self.router = ModelRouter(self.store, self.clock, self.settings, quotes, random.Random(1), barred=self._barred)
        self.feedback = FeedbackCollector(self.store, self.clock, self.router)
        self.bus.tap(self.feedback.take)

    async def _barred(self, names: Sequence[str]) -> Collection[str]:
        return self.barred

    async def choose(self, task: str = "t", generation: int = 1, *, attempt: int = 0, **keys: object) -> str:
        asked = ModelQuestion(
            attempt=attempt,
            attempts=3,
            generation=generation,
            models=MODELS,
            role="r",
            task=Task(id=task, prompt="p", **keys),  # type: ignore[arg-type]
        )
        return await self.router.choose(asked)

    def row(self, task: str = "t", generation: int = 1) -> sqlite3.Row:
        (row,) = self.store.query("decision_of", task=task, generation=generation)
        return row

    def end(self, ending: str, task: str = "t", generation: int = 1) -> None:
        self.bus.publish(AttemptEnded(ending=ending, generation=generation, reason="", task=task, took_s=60.0))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.store.close()


async def test_a_decision_is_in_the_store_with_all_that_judging_it_takes(room: Room) -> None:
    chosen = await room.choose(labels=("bug",))
    row = room.row()
    assert chosen in MODELS
    assert row["arm"] == chosen
    assert (row["kind"], row["size"], row["value_usd"], row["policy"], row["version"]) == (
        "bug",
        "small",
        5.0,
        "thompson",
        0,
    )
    arms, chances = json.loads(row["arms"]), json.loads(row["propensities"])
    assert [one["name"] for one in arms] == list(MODELS)
    assert sum(chances) == pytest.approx(1.0)
    assert min(chances) > 0
    assert 0 < arms[0]["cost_usd"] < arms[1]["cost_usd"], "prices are those of the list that ships"
    assert room.router.upstream_of("t", 1) == chosen.partition(" via ")[2]


async def test_a_task_that_names_its_model_gets_it_and_is_marked(room: Room) -> None:
    assert await room.choose(model="mine") == "mine"
    assert (room.row()["pinned"], json.loads(room.row()["propensities"])) == (1, [1.0])


async def test_settings_name_the_models_of_a_role(tmp_path: Path) -> None:
    room = Room(tmp_path, RouterSettings(models={"r": ("only",)}))
    assert await room.choose() == "only"
    room.store.close()


async def test_an_open_breaker_keeps_an_arm_out_and_teaches_nothing(room: Room) -> None:
    room.barred = (MODELS[1],)
    assert await room.choose() == MODELS[0]
    assert room.row()["pinned"] == 0
    assert room.router.policy.seen == 0


async def test_an_outcome_finds_its_decision_and_is_learnt_once(room: Room) -> None:
    await room.choose()
    room.bus.publish(
        CallsCounted(
            bytes_down=1, bytes_up=1, calls=3, cost_usd=0.25, generation=1, last_status=200, limited=0, task="t"
        )
    )
    room.end("landed")
    room.end("landed")
    row = room.row()
    assert (row["outcome"], row["landed"], row["quality"], row["cost_usd"], row["took_s"]) == (
        "landed",
        1,
        1.0,
        0.25,
        60.0,
    )
    assert room.router.policy.seen == 1
    again = ModelRouter(
        room.store,
        room.clock,
        room.settings,
        PriceQuotes(GatewaySettings(), (), room.clock.now),
        random.Random(1),
        barred=room._barred,
    )
    assert again.policy.seen == 1, "the next daemon knows"


@pytest.mark.parametrize("ending", ["over_budget", "conflict", "stopped", "rate_limited", "crashed", "unavailable"])
async def test_what_says_nothing_of_the_work_is_no_outcome(room: Room, ending: str) -> None:
    await room.choose()
    room.end(ending)
    assert (room.row()["outcome"], room.row()["landed"]) == (ending, None)
    assert room.router.policy.seen == 0


async def test_a_retry_knows_what_was_before_it(room: Room) -> None:
    first = await room.choose()
    room.end("gate_failed")
    await room.choose(generation=2, attempt=1)
    assert (room.row(generation=2)["attempt"], room.row(generation=2)["previous"]) == (1, first)
    assert room.row(generation=2)["version"] == 1


async def test_a_revert_hours_later_undoes_the_landing(room: Room) -> None:
    commit = "c0ffee" * 6 + "abcd"
    ledger = Ledger(room.store, room.bus, room.clock)
    ledger.add(Task(id="t", prompt="p"), reason="")
    await room.choose()
    room.end("landed")
    ledger.note("t", commit=commit, state=TaskState.COMPLETED)
    assert room.feedback.reverted(["a change", f'Revert "x"\n\nThis reverts commit {commit}.\n']) == 1
    assert (room.row()["outcome"], room.row()["landed"], room.row()["quality"]) == ("reverted", 0, 0.0)
    assert room.router.policy.seen == 3
    assert room.feedback.reverted([f"This reverts commit {commit}."]) == 0


async def test_a_person_has_the_last_word(room: Room) -> None:
    with pytest.raises(BadInput, match="no attempt"):
        room.feedback.judge("t", good=False)
    chosen = await room.choose()
    room.end("landed")
    assert room.feedback.judge("t", good=False) == chosen
    assert (room.row()["outcome"], room.row()["landed"]) == ("verdict", 0)
    assert room.router.policy.seen == 3


async def test_findings_in_the_files_of_a_landing_count_against_it(room: Room) -> None:
    await room.choose()
    room.end("landed")
    room.bus.publish(TaskLanded(commit="c", files=("a.py",), generation=1, target="main", task="t"))
    at = room.clock.now().isoformat()
    for number, path in enumerate(("a.py", "b.py")):
        values = {"fingerprint": f"f{number}", "tool": "ruff", "rule": "F401", "state": "open", "path": path, "line": 1}
        values |= {"fix": "safe", "severity": 2, "message": "", "task": "", "reason": "", "data": "{}"}
        room.store.execute("finding_put", **values, first_seen=at, last_seen=at)
    room.bus.publish(FindingsFolded(closed=0, opened=2, queued=0, status="ok", tool="ruff", took_s=1.0, total=2))
    assert (room.row()["quality"], room.row()["landed"], room.row()["outcome"]) == (0.9, 1, "landed")
    assert room.router.policy.seen == 1


async def test_what_was_measured_moves_the_expected_cost(room: Room) -> None:
    await room.choose(model=MODELS[0])
    before = json.loads(room.row()["arms"])[0]["cost_usd"]
    for number in range(30):
        await room.choose(f"t{number}", model=MODELS[0])
        room.bus.publish(
            CallsCounted(
                bytes_down=1,
                bytes_up=1,
                calls=3,
                cost_usd=4 * before,
                generation=1,
                last_status=200,
                limited=0,
                task=f"t{number}",
            )
        )
        room.end("landed", f"t{number}")
    await room.choose("later", model=MODELS[0])
    after = json.loads(room.row("later")["arms"])[0]
    assert after["cost_usd"] == pytest.approx(before * (10 + 30 * 4) / 40, rel=1e-6)
    assert after["list_usd"] == pytest.approx(before * 2), "a small task is half a medium one"

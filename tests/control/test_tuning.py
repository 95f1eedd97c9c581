"""The loop as the daemon has it: wrong limits are mended, wrong changes taken back, and a person's word ends all trials."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.control.block_tuner import BLOCK_S, BlockTuner
from coordinator.control.objective import Objective, Score
from coordinator.control.snapshot_store import SnapshotStore, differences, snapshots
from coordinator.control.wait_tuner import WaitTuner
from coordinator.domain.control_settings import ControlSettings, RouterSettings
from coordinator.domain.event import KnobTurned, TaskLanded
from coordinator.domain.knob import ChangeAuthor, KnobKind
from coordinator.kit.store import Store
from scripts.control_tuning import KNOB, TunedUpstream
from scripts.control_upstream import SharedUpstream
from tests.control.knobs import Panelled
from tests.policy.served import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class TurnedClock:
    at_s: float = 1000.0

    def monotonic(self) -> float:
        return self.at_s

    def now(self) -> datetime:
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.at_s)

    async def sleep(self, seconds: float) -> None:
        self.at_s += seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "ledger.db")
    yield store
    store.close()


def upstream(tmp_path: Path, cap: int, tuning: str = "on", **more: Any) -> TunedUpstream:
    return TunedUpstream(SharedUpstream(77, cap=cap, **more), tmp_path, tuning)


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_wrong_limit_is_mended_and_each_step_explained(tmp_path: Path) -> None:
    one = upstream(tmp_path, 4)
    await one.pass_to(600)
    assert 9 <= one.world.limit.cap <= 17
    kept = [change for change in one.changes() if change["verdict"] == "kept"]
    assert kept[0]["old"] == 4
    assert "calls wait, and 4 at once deliver" in kept[0]["why"]
    assert "bytes/s" in kept[0]["outcome"]
    assert {change["author"] for change in one.changes()} == {"probe"}


async def test_a_wrong_idea_of_a_person_is_mended_and_the_trial_under_way_ends(tmp_path: Path) -> None:
    one = upstream(tmp_path, 12)
    while not one.board.on_trial:
        await one.pass_to(one.world.at_s + 1)
    await one.board.set(KNOB, 36, "more is better")
    await one.pass_to(one.world.at_s + 2)
    ended, declared = one.changes()[:2]
    assert (ended["verdict"], ended["outcome"]) == ("aborted", "somebody else turned it")
    assert (declared["author"], one.world.limit.cap) == ("person", 36)
    await one.pass_to(one.world.at_s + 200)
    assert 9 <= one.world.limit.cap <= 17


async def test_a_wrong_advisor_is_taken_back_within_a_minute(tmp_path: Path) -> None:
    one = upstream(tmp_path, 12)
    await one.pass_to(500)
    assert one.controller.limits.advise("shared", 4, "an advisor is sure")
    assert not one.controller.limits.advise("nobody", 4, "")
    await one.pass_to(506)
    assert one.world.limit.cap == 4
    await one.pass_to(566)
    assert one.world.limit.cap == 12
    last = one.changes()[-1]
    assert (last["why"], last["verdict"]) == ("an advisor is sure", "reverted")


async def test_what_refusals_teach_is_written_down_as_theirs(tmp_path: Path) -> None:
    one = upstream(tmp_path, 12, refuses=8)
    await one.pass_to(60)
    assert [(change["author"], change["new"], change["verdict"]) for change in one.changes()][:1] == [
        ("typed", 8, "kept")
    ]
    await one.pass_to(1200)
    assert [change for change in one.changes() if change["author"] == "probe" and change["new"] > 8] == []


async def test_frozen_pinned_off_and_dry_nothing_is_turned(tmp_path: Path) -> None:
    for number, tuning in enumerate(("on", "on", "off", "dry-run")):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = upstream(folder, 4, tuning)
        if number == 0:
            one.board.freeze(True)
        if number == 1:
            await one.board.pin(KNOB, True)
        await one.pass_to(600)
        assert one.world.limit.cap == 4
        verdicts = {change["verdict"] for change in one.changes()}
        assert verdicts == ({"dry run"} if tuning == "dry-run" else set())


# -- waits -------------------------------------------------------------------------------------------------------------


@dataclass
class Door:
    """Calls wait as long as the room before it is deep, and nobody is ever turned away."""

    store: Store
    clock: TurnedClock = field(default_factory=TurnedClock)

    def __post_init__(self) -> None:
        self.panel = Panelled(self.clock, self.store, {"promote_s": 60.0, "room": 400.0})
        self.panel.panel._knobs["room"] = _deep(self.panel.panel._knobs["room"])
        self.objective = Objective(self.store, RouterSettings(), self.clock.at_s)
        self.tuner = WaitTuner(self.panel.board, self.objective, 30.0, dry=False)

    async def pass_s(self, seconds: float, *, calls: bool = True) -> None:
        until = self.clock.at_s + seconds
        while self.clock.at_s < until:
            self.clock.at_s += 1
            if calls:
                wait_s = self.panel.values["room"] / 4
                self.objective.take(served(wait_s=wait_s, took_s=wait_s + 1), self.clock.at_s)
            await self.tuner.look(self.clock.at_s)


def _deep(live: Any) -> Any:
    return replace(live, knob=replace(live.knob, maximum=4096, minimum=8, step=8))


async def test_a_room_is_made_as_deep_as_calls_may_wait(store: Store) -> None:
    door = Door(store)
    await door.pass_s(3600)
    assert 20 <= door.panel.values["room"] / 4 <= 40
    changes = door.panel.changes()
    assert {change["author"] for change in changes} == {"servo"}
    assert "95 % of calls wait up to 100 s, and 30 s are aimed at" in changes[0]["why"]
    settled = len(changes)
    await door.pass_s(3600)
    assert len(door.panel.changes()) == settled


async def test_without_calls_or_without_waits_nothing_is_changed(store: Store) -> None:
    door = Door(store)
    await door.pass_s(600, calls=False)
    door.panel.values["room"] = 40.0
    await door.pass_s(600)
    assert door.panel.changes() == []


# -- fleet size --------------------------------------------------------------------------------------------------------


async def blocks(store: Store, worth: dict[float, float], hours: float, *, unsettled: bool = False) -> Panelled:
    """An hour is worth as much as the fleet is of that size, and all calls wait. ``unsettled``: for 25 minutes after each turn it
    is worth five times as much, whichever way."""
    clock = TurnedClock()
    panel = Panelled(clock, store, {"agents": 12.0}, {"agents": KnobKind.BLOCK})
    live = panel.panel._knobs["agents"]
    panel.panel._knobs["agents"] = replace(live, knob=replace(live.knob, settle_s=1800))
    turned_s, stood = 0.0, 12.0
    chance = random.Random(3)
    tuner = BlockTuner(panel.board, "landed", random.Random(4), dry=False)
    for _ in range(round(hours * 60)):
        clock.at_s += 60
        landed = worth[panel.values["agents"]] * chance.lognormvariate(0, 0.2)
        if panel.values["agents"] != stood:
            turned_s, stood = clock.at_s, panel.values["agents"]
        if unsettled and clock.at_s - turned_s < 1500:
            landed = 10 / worth[stood]
        await tuner.look(Score(calls=10, landed=landed, took_s=60.0, waited=10), clock.at_s)  # type: ignore[arg-type]
    return panel


async def test_a_smaller_fleet_that_lands_more_is_kept(store: Store) -> None:
    panel = await blocks(store, {12.0: 1.0, 8.0: 2.0}, 60)
    assert panel.values == {"agents": 8}
    [change] = panel.changes()
    assert (change["author"], change["verdict"]) == ("block", "kept")
    assert "100% of the calls of an hour waited" in change["why"]
    assert BLOCK_S == 7200.0
    assert "pairs of blocks" in change["outcome"]
    assert Panelled(panel.clock, store, {"agents": 12.0}, panel.kinds).values == {"agents": 8}


async def test_what_comes_before_a_change_has_settled_is_not_counted(store: Store) -> None:
    panel = await blocks(store, {12.0: 1.0, 8.0: 2.0}, 60, unsettled=True)
    assert [change["verdict"] for change in panel.changes()] == ["kept"]


async def test_one_that_lands_less_is_taken_back(store: Store) -> None:
    panel = await blocks(store, {12.0: 2.0, 8.0: 1.0}, 60)
    assert panel.values == {"agents": 12}
    assert [change["verdict"] for change in panel.changes()] == ["reverted"]


# -- what a time was worth ---------------------------------------------------------------------------------------------


def test_a_time_is_worth_what_landed_less_what_calls_cost(store: Store) -> None:
    objective = Objective(store, RouterSettings(), 0.0)
    landed = TaskLanded(commit="c", files=(), generation=1, target="t", task="t1")
    for event in (landed, served(cost_usd=0.5), served(status=500), served(wait_s=5.0, took_s=6.0)):
        objective.take(event, 10.0)
    score = objective.take_score(1800.0)
    assert score.worth("value") == pytest.approx(2 * (5.0 - 0.5 - 2 * served().cost_usd))
    assert score.worth("landed") == 2.0
    assert (score.calls, score.failed, score.waited, score.context) == (3, 1, 1, "busy")
    assert objective.take_score(1900.0) == Score(took_s=100.0)


def test_a_landing_is_worth_what_the_router_said_when_it_chose(store: Store) -> None:
    decided = {
        "arm": "a",
        "arms": "[]",
        "at": "",
        "attempt": 1,
        "attempts": 3,
        "generation": 1,
        "kind": "lint",
        "pinned": 0,
    }
    more = {
        "policy": "first",
        "previous": "",
        "propensities": "[]",
        "role": "r",
        "size": "m",
        "task": "t1",
        "version": 1,
    }
    store.execute("decision_add", value_usd=0.5, **decided, **more)
    objective = Objective(store, RouterSettings(), 0.0)
    objective.take(TaskLanded(commit="c", files=(), generation=1, target="t", task="t1"), 10.0)
    assert objective.take_score(3600.0).worth("value") == 0.5


def test_snapshots_are_whole_scored_by_context_and_the_best_has_had_its_hour(store: Store) -> None:
    kept = SnapshotStore(store, TurnedClock())
    hour = {"calls": 100, "took_s": 3600.0}
    assert kept.take({"room": 1.0}, "start", Score(**hour, value_usd=2.0)) == 1  # type: ignore[arg-type]
    assert kept.take({"room": 2.0}, "room by servo", Score(**hour, value_usd=3.0)) == 2  # type: ignore[arg-type]
    assert kept.take({"room": 2.0}, "", Score(**hour, value_usd=3.0)) == 2  # type: ignore[arg-type]
    assert kept.take({"room": 3.0}, "", Score(calls=10, took_s=60.0, value_usd=9.0)) == 3
    assert kept.take({"room": 4.0}, "", Score(**hour, failed=50, value_usd=9.0)) == 4  # type: ignore[arg-type]
    found = snapshots(store.query("knob_snapshots"), ControlSettings())
    assert [(one["version"], one["worth"]["light"], one["best"]) for one in found] == [
        (1, 2.0, []),
        (2, 3.0, ["light"]),
        (3, 540.0, []),
        (4, 9.0, []),
    ]
    assert differences(found[0]["values"], {"room": 2.0, "door": 1.0}) == [
        {"knob": "door", "new": 1.0, "old": None},
        {"knob": "room", "new": 2.0, "old": 1.0},
    ]


async def test_each_minute_is_put_down_to_the_values_that_stood_and_none_to_a_trial(tmp_path: Path) -> None:
    one = upstream(tmp_path, 12)
    await one.pass_to(600)
    found = snapshots(one.store.query("knob_snapshots"), ControlSettings())
    assert [shot["values"] for shot in found] == [{KNOB: 12.0}]
    assert one.told
    assert all(isinstance(published.event, KnobTurned) for published in one.told)
    assert {published.event.author for published in one.told} == {ChangeAuthor.PROBE}  # type: ignore[attr-defined]

"""What becomes of a task when an attempt is over, as the ledger keeps it across restarts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Ending
from coordinator.domain.candidate import Candidate, Settlement
from coordinator.domain.settings import FleetSettings, Settings
from coordinator.domain.task import Task, TaskState
from coordinator.fleet import operate
from coordinator.fleet.collector import Gathered
from coordinator.fleet.intake import Intake
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.settling import Settling
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.schedule import next_local_fire
from coordinator.kit.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.fleet.ledger import LedgerEntry
    from coordinator.sdk.layout import Layout

SETTINGS = Settings(fleet=replace(FleetSettings(), max_attempts=2, quick_death_s=60.0, crash_loop=5))


class Desk:
    """A settling with a ledger that can be opened anew, as after a kill."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.open()

    def open(self) -> None:
        self.store, clock = Store.open(self.layout.ledger), SystemClock()
        bus = Bus(clock)
        bus.tap(self.store.journal)
        self.ledger = Ledger(self.store, bus, clock)
        intake = Intake(self.layout, self.ledger, self.store, SETTINGS, clock, lambda: None)
        self.settling = Settling(bus=bus, clock=clock, intake=intake, ledger=self.ledger, settings=SETTINGS)

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def attempt(self, *, session: str = "") -> LedgerEntry:
        """The next attempt of the task, as far as running."""
        if "t" not in self.ledger:
            self.ledger.add(Task(id="t", prompt="p"), reason="new")
        entry = self.ledger.get("t")
        self.ledger.move("t", TaskState.READY, "go", generation=entry.generation + 1, tries=entry.tries + 1)
        self.ledger.record("t", entry.generation + 1, session=session)
        self.ledger.move("t", TaskState.CLAIMED, "go")
        return self.ledger.move("t", TaskState.RUNNING, "go")

    def end(self, ending: Ending, *, session: str = "", **left: object) -> LedgerEntry:
        entry = self.attempt(session=session)
        gathered = Gathered(candidate=None, ending=ending, feedback="said", reason="why", lived_s=100.0)
        self.settling.ended(entry, ending, "why", replace(gathered, **left))  # type: ignore[arg-type]
        return self.ledger.get("t")


@pytest.fixture
def desk(layout: Layout) -> Iterator[Desk]:
    made = Desk(layout)
    yield made
    made.store.close()


def test_five_quick_deaths_hold_a_task_even_when_the_daemon_dies_each_time(desk: Desk) -> None:
    log = "\n".join(f"line {number}" for number in range(20))
    for number in range(1, 5):
        entry = desk.end(Ending.CRASHED, lived_s=1.0)
        assert (entry.state, entry.crashes, entry.attempts) == (TaskState.PENDING, number, 0)
        desk.reopen()
    entry = desk.end(Ending.CRASHED, lived_s=1.0, feedback=log)
    assert entry.state is TaskState.HELD
    assert "crash loop, 5 times in a row" in entry.reason
    assert "line 19" in entry.feedback
    operate.release(desk.ledger, "t")
    assert desk.ledger.get("t").crashes == 0


def test_a_death_after_a_while_is_charged_and_starts_the_count_anew(desk: Desk) -> None:
    for _ in range(4):
        desk.end(Ending.CRASHED, lived_s=1.0)
    entry = desk.end(Ending.CRASHED, lived_s=61.0)
    assert (entry.state, entry.crashes, entry.attempts) == (TaskState.PENDING, 0, 1)
    assert desk.end(Ending.CRASHED, lived_s=61.0).state is TaskState.FAILED


def test_a_refused_attempt_goes_on_with_its_conversation_and_knows_where_its_work_is(desk: Desk) -> None:
    entry = desk.attempt(session="s-1")
    desk.ledger.move("t", TaskState.VALIDATING, "judged")
    work = Candidate(agent="a", base="b", commit="c0ffee" * 6, generation=1, task=entry.task)
    settlement = Settlement(candidate=work, ending=Ending.GATE_FAILED, reason="red", feedback="2 tests fail")
    desk.settling.refused(desk.ledger.get("t"), settlement)
    desk.reopen()
    entry = desk.ledger.get("t")
    assert (entry.state, entry.resume, entry.attempts) == (TaskState.PENDING, "s-1", 1)
    assert "git cherry-pick --no-commit c0ffeec0ffee" in entry.feedback
    assert "2 tests fail" in entry.feedback
    assert "the same conversation goes on" in entry.reason


def test_a_conversation_that_failed_twice_is_not_gone_on_with(desk: Desk) -> None:
    assert desk.end(Ending.STALLED, session="s-1").resume == "s-1"
    operate.retry(desk.ledger, "t")
    assert desk.ledger.get("t").resume == ""
    assert desk.end(Ending.CRASHED, session="s-2", lived_s=1.0).resume == "s-2"
    assert desk.end(Ending.CRASHED, session="s-2", lived_s=1.0).resume == ""


def test_one_that_did_not_come_to_speak_leaves_the_conversation_it_was_given(desk: Desk) -> None:
    assert desk.end(Ending.RATE_LIMITED, session="s-1").resume == "s-1"
    assert desk.end(Ending.RATE_LIMITED).resume == "s-1"


def test_a_spent_budget_is_a_persons_decision_and_the_conversation_waits(desk: Desk) -> None:
    entry = desk.end(Ending.OVER_BUDGET, session="s-1")
    assert entry.state is TaskState.HELD
    assert "raise budget_usd" in entry.reason
    operate.release(desk.ledger, "t")
    entry = desk.ledger.get("t")
    assert (entry.state, entry.resume, entry.feedback) == (TaskState.PENDING, "s-1", "said")


def test_waiting_for_a_limit_uses_nothing_up(desk: Desk) -> None:
    for _ in range(40):
        entry = desk.end(Ending.RATE_LIMITED)
        assert (entry.state, entry.attempts, entry.tries) == (TaskState.PENDING, 0, 0)


def test_an_operators_hold_comes_before_any_retry(desk: Desk) -> None:
    desk.attempt()
    desk.ledger.note("t", hold=True)
    desk.settling.ended(desk.ledger.get("t"), Ending.GATE_FAILED, "red")
    assert desk.ledger.get("t").state is TaskState.HELD


def test_what_is_found_on_the_target_closes_its_attempt_and_is_told(desk: Desk) -> None:
    """The daemon died between the move of the target and the writing down."""
    desk.attempt()
    desk.ledger.move("t", TaskState.VALIDATING, "waits")
    entry = desk.ledger.move("t", TaskState.LANDING, "passed")
    desk.settling.found(entry, "c" * 40, "found on coordinator/main as cccccccccc")
    row = desk.ledger.attempt("t", entry.generation)
    assert row is not None
    assert (row.ending, bool(row.ended_at)) == ("landed", True)
    assert desk.ledger.get("t").state is TaskState.COMPLETED
    kinds = [one["kind"] for one in desk.store.query("journal_of", task="t")]
    assert kinds[-3:] == ["task_changed", "attempt_ended", "task_landed"]


@pytest.mark.parametrize("lands", [True, False])
def test_a_task_with_a_schedule_waits_for_its_next_run_whatever_came_of_this_one(desk: Desk, lands: bool) -> None:
    desk.ledger.add(Task(id="t", prompt="p", schedule="0 4 1 1 *"), reason="new")
    entry = desk.attempt()
    if lands:
        desk.ledger.move("t", TaskState.VALIDATING, "judged")
        candidate = Candidate(agent="a", base="b", commit="c", generation=entry.generation, task=entry.task)
        settlement = Settlement(candidate=candidate, commit="c" * 40, ending=Ending.LANDED, reason="landed")
        desk.settling.landed(desk.ledger.get("t"), settlement)
    else:
        desk.settling.ended(entry, Ending.CRASHED, "why", None)
        desk.settling.ended(desk.attempt(), Ending.CRASHED, "why", None)
    desk.reopen()
    entry = desk.ledger.get("t")
    due = next_local_fire("0 4 1 1 *", datetime.now(UTC)).timestamp()
    assert (entry.state, entry.not_before, entry.attempts) == (TaskState.PENDING, due, 0)

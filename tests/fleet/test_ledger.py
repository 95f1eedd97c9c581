"""The ledger against a model: every walk through the state table survives a restart and is journaled as it was."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from coordinator.domain.errors import ForbiddenTransition, UnknownTask
from coordinator.domain.event import Noticed
from coordinator.domain.task import TRANSITIONS, Task, TaskState
from coordinator.fleet.ledger import Ledger
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store


def _open(path: Path) -> tuple[Store, Ledger, list[tuple[str, str, str]]]:
    store = Store.open(path)
    bus = Bus(SystemClock())
    seen: list[tuple[str, str, str]] = []
    bus.tap(lambda published: seen.append((published.event.task, published.event.old, published.event.new)))  # type: ignore[attr-defined]
    return store, Ledger(store, bus, SystemClock()), seen


class LedgerMachine(RuleBasedStateMachine):
    """Adds, moves, restarts at random; the model is a plain dictionary."""

    ids = Bundle("ids")

    @initialize()
    def begin(self) -> None:
        self._folder = TemporaryDirectory()
        self._path = Path(self._folder.name) / "ledger.db"
        self.store, self.ledger, self.seen = _open(self._path)
        self.model: dict[str, TaskState] = {}
        self.told: list[tuple[str, str, str]] = []

    @rule(target=ids, number=st.integers(0, 20), priority=st.integers(1, 9))
    def add(self, number: int, priority: int) -> str:
        task_id = f"t{number}"
        if task_id not in self.model:
            self.ledger.add(Task(id=task_id, prompt="p", priority=priority, paths=("a", "b")), reason="new")
            self.model[task_id] = TaskState.PENDING
            self.told.append((task_id, "", "pending"))
        return task_id

    @rule(task_id=ids, state=st.sampled_from(TaskState), generation=st.integers(0, 5))
    def move(self, task_id: str, state: TaskState, generation: int) -> None:
        old = self.model[task_id]
        if state in TRANSITIONS[old]:
            entry = self.ledger.move(task_id, state, "because", generation=generation)
            assert (entry.state, entry.generation) == (state, generation)
            self.model[task_id] = state
            self.told.append((task_id, old, state))
        else:
            with pytest.raises(ForbiddenTransition):
                self.ledger.move(task_id, state, "because")

    @rule()
    def restart(self) -> None:
        self.store.close()
        before = self.seen
        self.store, self.ledger, self.seen = _open(self._path)
        self.seen.extend(before)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        assert {entry.task.id: entry.state for entry in self.ledger.entries()} == self.model
        for state in TaskState:
            assert self.ledger.count(state) == sum(value is state for value in self.model.values())
            assert {entry.task.id for entry in self.ledger.in_state(state)} == {
                task_id for task_id, value in self.model.items() if value is state
            }
        assert self.seen == self.told

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self._folder.cleanup()


LedgerMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


def test_a_definition_comes_back_as_it_was(tmp_path: Path) -> None:
    task = Task(id="a", prompt="p", env=(("K", "v"),), depends_on=("b",), timeout_s=1.5, accept=("x y",))
    store, ledger, _ = _open(tmp_path / "l.db")
    ledger.add(task, reason="new")
    store.close()
    _, ledger, _ = _open(tmp_path / "l.db")
    assert ledger.get("a").task == task


def test_a_failed_write_changes_nothing_in_memory(tmp_path: Path) -> None:
    store, ledger, seen = _open(tmp_path / "l.db")
    ledger.add(Task(id="a", prompt="p"), reason="new")
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        ledger.move("a", TaskState.READY, "go")
    assert ledger.get("a").state is TaskState.PENDING
    assert ledger.count(TaskState.READY) == 0
    assert len(seen) == 1


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UnknownTask, match="'nope'"):
        _open(Path(":memory:"))[1].get("nope")


def test_urgent_first_then_oldest(tmp_path: Path) -> None:
    _, ledger, _ = _open(tmp_path / "l.db")
    for name, priority in (("late", 5), ("first", 1), ("second", 1)):
        ledger.add(Task(id=name, prompt="p", priority=priority), reason="new")
    assert [entry.task.id for entry in ledger.in_state(TaskState.PENDING)] == ["first", "second", "late"]


def test_attempts_and_facts_are_kept(tmp_path: Path) -> None:
    store, ledger, _ = _open(tmp_path / "l.db")
    ledger.record("a", 2, agent="x", base="abc")
    ledger.record("a", 2, ending="landed")
    row = ledger.attempt("a", 2)
    assert row is not None
    assert (row.agent, row.base, row.ending) == ("x", "abc", "landed")
    assert ledger.attempt("a", 3) is None
    ledger.fact("gate", {"broken": ""})
    assert json.loads(store.query("fact_get", key="gate")[0]["value"]) == {"broken": ""}


class FullDisk:
    """A ledger on a database that may not grow: SQLite itself says that the disk is full."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        self.bus = Bus(SystemClock())
        self.bus.tap(self.store.journal)
        self.told = self.bus.subscribe()
        self.ledger = Ledger(self.store, self.bus, SystemClock())
        self.ledger.add(Task(id="a", prompt="p"), reason="new")
        self.heard()

    def heard(self) -> list[str]:
        found = [published.event.kind for published in self.told._events]
        self.told._events.clear()
        return found

    def limit(self, more_pages: int | None) -> None:
        pages = self.store._connection.execute("PRAGMA page_count").fetchone()[0]
        most = pages + more_pages if more_pages is not None else 1 << 30
        self.store._connection.execute(f"PRAGMA max_page_count = {most}")

    def claim(self) -> None:
        with self.ledger.batch():
            self.ledger.record("a", 1, ending="crashed")
            self.ledger.move("a", TaskState.READY, "go")
            self.ledger.move("a", TaskState.CLAIMED, LONG)
            assert self.heard() == [], "nobody hears of it before it is kept"

    def tell(self) -> None:
        with self.ledger.batch():
            self.ledger.move("a", TaskState.READY, "go")
            self.bus.publish(Noticed(subject="disk", message=LONG))

    def stored(self) -> tuple[str, list[str], list[str]]:
        """What another reader sees: the task's state, the endings of its attempts, the kinds of the journal."""
        state = self.store.query("task_get", id="a")[0]["state"]
        endings = [row["ending"] for row in self.store.query("attempts_of", task="a")]
        return state, endings, [row["kind"] for row in self.store.query("journal_of", task="a")]


LONG = "x" * 200_000


def test_a_batch_on_a_full_disk_happened_nowhere(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path / "l.db")
    before = disk.stored()
    disk.limit(2)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        disk.claim()
    assert disk.stored() == before
    assert (disk.ledger.get("a").state, disk.ledger.count(TaskState.CLAIMED)) == (TaskState.PENDING, 0)
    assert disk.heard() == []
    disk.limit(None)
    disk.claim()
    assert disk.heard() == ["task_changed", "task_changed"]
    assert disk.stored() == ("claimed", ["crashed"], [*before[2], "task_changed", "task_changed"])


def test_a_journal_that_finds_no_room_undoes_the_whole(tmp_path: Path) -> None:
    """The bus swallows what a listener raises: the transaction must know it all the same."""
    disk = FullDisk(tmp_path / "l.db")
    before = disk.stored()
    disk.limit(2)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        disk.tell()
    assert disk.stored() == before
    assert disk.ledger.get("a").state is TaskState.PENDING
    assert disk.heard() == []


def test_a_new_task_that_was_not_kept_is_not_known(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path / "l.db")
    disk.limit(2)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        disk.ledger.add(Task(id="b", prompt=LONG), reason="new")
    assert "b" not in disk.ledger
    disk.limit(None)
    disk.ledger.add(Task(id="b", prompt=LONG), reason="new")
    assert disk.ledger.count(TaskState.PENDING) == 2

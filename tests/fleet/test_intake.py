"""What becomes of tasks whose files go away, and when tasks that come again are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.settings import Settings
from coordinator.domain.task import Task, TaskState
from coordinator.fleet.intake import Intake
from coordinator.fleet.ledger import Ledger
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.schedule import next_local_fire
from coordinator.kit.store import Store
from coordinator.policy.spool import SpoolState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.sdk.layout import Layout


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    made = Store.open(layout.ledger)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("file", "reason"),
    [("tasks/mine.toml", "its file was removed"), ("tasks/auto/ruff-f401.toml", "what it was for is gone")],
)
def test_a_task_of_discovery_is_not_said_to_have_been_removed_by_somebody(
    layout: Layout, store: Store, file: str, reason: str
) -> None:
    clock = SystemClock()
    ledger = Ledger(store, Bus(clock), clock)
    intake = Intake(layout, ledger, store, Settings(), clock, lambda: None)
    ledger.add(Task(id="t", prompt="p", file=file), reason="new")
    dropped: list[tuple[str, str]] = []
    intake._drop_removed(SpoolState(), lambda entry, why: dropped.append((entry.task.id, why)))
    assert dropped == [("t", reason)]


def test_a_task_that_comes_again_waits_for_its_time_and_an_edit_of_the_time_counts_at_once(
    layout: Layout, store: Store
) -> None:
    clock = SystemClock()
    ledger = Ledger(store, Bus(clock), clock)
    intake = Intake(layout, ledger, store, Settings(), clock, lambda: None)

    def fold(schedule: str, **changes: str) -> float:
        values = {"prompt": "p", "digest": schedule, **changes}
        intake._fold_task(Task(id="t", file="tasks/t.toml", schedule=schedule, **values), lambda *_: True)  # type: ignore[arg-type]
        return ledger.get("t").not_before

    now = datetime.now(UTC)
    yearly = fold("0 4 1 1 *")
    assert datetime.fromtimestamp(yearly, UTC) == next_local_fire("0 4 1 1 *", now)
    soon = fold("* * * * *")
    assert timedelta(0) < datetime.fromtimestamp(soon, UTC) - now <= timedelta(minutes=1, seconds=5)
    ledger.note("t", not_before=17.0)  # its time has come, or it is to be tried again soon
    assert fold("* * * * *", prompt="other words", digest="edited") == 17.0
    assert fold("") == 0.0
    assert ledger.get("t").state is TaskState.PENDING


@pytest.mark.parametrize(
    ("states", "soon"),
    [
        ((TaskState.VALIDATING,), True),
        ((TaskState.LANDING, TaskState.COMPLETED), True),
        ((TaskState.VALIDATING, TaskState.RUNNING), False),
        ((TaskState.COMPLETED,), False),
        ((), False),
    ],
)
def test_a_task_is_about_to_be_free_when_all_it_waits_for_is_being_landed(
    layout: Layout, store: Store, states: tuple[TaskState, ...], soon: bool
) -> None:
    clock = SystemClock()
    ledger = Ledger(store, Bus(clock), clock)
    intake = Intake(layout, ledger, store, Settings(), clock, lambda: None)
    for number, state in enumerate(states):
        ledger.add(Task(id=f"needed-{number}", prompt="p"), reason="new")
        ledger.note(f"needed-{number}", state=state)
    needed = tuple(f"needed-{number}" for number in range(len(states)))
    waiting = ledger.add(Task(id="t", prompt="p", depends_on=needed), reason="new")
    assert intake.about_to_be_free(waiting) is soon

"""What becomes of tasks whose files go away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.domain.settings import Settings
from coordinator.domain.task import Task
from coordinator.fleet.intake import Intake
from coordinator.fleet.ledger import Ledger
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
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

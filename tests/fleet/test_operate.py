"""The operator's verbs without a daemon: on the ledger, and never under a living agent's feet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import ClaimRecord
from coordinator.domain.errors import ClaimHeld, ForbiddenTransition
from coordinator.domain.task import Task, TaskState
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.operate import Operator
from coordinator.kit import lock
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


class _Desk:
    def __init__(self, tmp_path: Path) -> None:
        self.layout = Layout(tmp_path, tmp_path / ".coordinator")
        for folder in (self.layout.ready, self.layout.claims):
            folder.mkdir(parents=True)
        clock = SystemClock()
        self.ledger = Ledger(Store.open(self.layout.ledger), Bus(clock), clock)
        self.ledger.add(Task(id="t", prompt="p"), reason="new")
        self.operator = Operator(self.layout, self.ledger)

    def offer(self) -> Path:
        self.ledger.move("t", TaskState.READY, "offered", generation=1)
        entry = self.layout.ready_entry(1, 1, "t")
        entry.write_text(json.dumps({"generation": 1, "role": "x", "task": "t"}))
        return entry

    @property
    def state(self) -> TaskState:
        return self.ledger.get("t").state


@pytest.fixture
def desk(tmp_path: Path) -> _Desk:
    return _Desk(tmp_path)


async def test_hold_release_cancel_retry(desk: _Desk) -> None:
    await desk.operator.hold("t", "later")
    assert desk.state is TaskState.HELD
    await desk.operator.release("t")
    assert desk.state is TaskState.PENDING
    await desk.operator.cancel("t", "no")
    assert desk.state is TaskState.CANCELLED
    await desk.operator.retry("t")
    assert desk.state is TaskState.PENDING


async def test_an_offer_is_taken_back(desk: _Desk) -> None:
    entry = desk.offer()
    await desk.operator.cancel("t", "no")
    assert desk.state is TaskState.CANCELLED
    assert not entry.exists()


async def test_a_held_claim_is_left_alone_and_its_holder_named(desk: _Desk) -> None:
    entry = desk.offer()
    host, boot, pid, started = lock.own_identity()
    record = ClaimRecord(agent="bob", boot=boot, generation=1, host=host, pid=pid, started=started, task="t")
    lock.write_record(desk.layout.claim_record("t"), record)
    held = lock.acquire(desk.layout.claim_lock("t"))
    assert held is not None
    with held, pytest.raises(ClaimHeld, match=f"bob .pid {pid} on"):
        await desk.operator.cancel("t", "no")
    assert desk.state is TaskState.READY
    assert entry.exists()


async def test_what_the_gate_has_is_left_to_a_daemon(desk: _Desk) -> None:
    desk.offer()
    for state in (TaskState.CLAIMED, TaskState.VALIDATING):
        desk.ledger.move("t", state, "on")
    with pytest.raises(ClaimHeld, match="validating"):
        await desk.operator.cancel("t", "no")


async def test_a_completed_task_is_not_cancelled(desk: _Desk) -> None:
    desk.ledger.move("t", TaskState.COMPLETED, "landed")
    with pytest.raises(ForbiddenTransition):
        await desk.operator.cancel("t", "no")

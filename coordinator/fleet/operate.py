"""What an operator may do to a task while no daemon runs, on the ledger alone.

Owns one invariant: it is only used while the daemon's lock is held by the caller, and a task that an agent still works
on is left alone. With a daemon, ``fleet.steward`` has the same four verbs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.domain.errors import ClaimHeld
from coordinator.domain.task import ACTIVE, TaskState, check_wish
from coordinator.fleet.ledger import FRESH
from coordinator.kit import lock
from coordinator.sdk.layout import task_of_entry

if TYPE_CHECKING:
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.sdk.layout import Layout


def release(ledger: Ledger, task_id: str) -> None:
    """Undo a hold, also one that was to take effect after the attempt at work. All attempts are given again; what the last
    one said, and its conversation, stay: a budget that was raised is for going on."""
    entry = ledger.get(task_id)
    check_wish(task_id, "release", entry.state)
    if entry.state is TaskState.HELD:
        going_on = {**FRESH, "feedback": entry.feedback, "resume": entry.resume}
        ledger.move(task_id, TaskState.PENDING, "released by the operator", **going_on)
    else:
        ledger.note(task_id, hold=False)


def retry(ledger: Ledger, task_id: str) -> None:
    """Run a task again from the start that is settled or held, with all its attempts; or end the pause of one that waits."""
    entry = ledger.get(task_id)
    check_wish(task_id, "retry", entry.state)
    if entry.state is TaskState.PENDING:
        ledger.note(task_id, reason="retried by the operator", **FRESH)
    else:
        ledger.move(task_id, TaskState.PENDING, "retried by the operator", **FRESH)


class Operator:
    """The steward's verbs without a steward."""

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        self._layout = layout
        self._ledger = ledger

    async def cancel(self, task_id: str, reason: str) -> None:
        self._ledger.move(self._free(task_id).task.id, TaskState.CANCELLED, reason)

    async def hold(self, task_id: str, reason: str) -> None:
        check_wish(task_id, "hold", self._ledger.get(task_id).state)
        self._ledger.move(self._free(task_id).task.id, TaskState.HELD, reason)

    async def release(self, task_id: str) -> None:
        release(self._ledger, task_id)

    async def retry(self, task_id: str) -> None:
        retry(self._ledger, task_id)

    def _free(self, task_id: str) -> LedgerEntry:
        """Take the offer back under the claim's lock, so that no agent takes it meanwhile."""
        entry = self._ledger.get(task_id)
        if entry.state not in ACTIVE:
            return entry
        if entry.state is not TaskState.READY:
            raise ClaimHeld(f"{task_id} is {entry.state}; start the daemon, which stops it or judges what was left")
        held = lock.acquire(self._layout.claim_lock(task_id))
        if held is None:
            record = lock.read_record(self._layout.claim_record(task_id))
            holder = record.holder if record is not None else "an unknown process"
            raise ClaimHeld(f"{holder} is at work on {task_id}; start the daemon to stop it")
        with held:
            for path in self._layout.ready.iterdir():
                if path.name.endswith(task_id) and task_of_entry(path.name) == task_id:
                    path.unlink(missing_ok=True)
        return entry

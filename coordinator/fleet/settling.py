"""What becomes of a task when an attempt at it is over: landed, again later, held, failed or cancelled.

Owns one invariant: the attempt's row, the task's move and their events are one transaction. It decides nothing:
``policy.retry`` does; and it never touches an agent or a tree.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from coordinator.domain.attempt import Ending
from coordinator.domain.event import AttemptEnded, TaskLanded
from coordinator.domain.task import TaskState
from coordinator.fleet.ledger import FRESH
from coordinator.policy import retry

if TYPE_CHECKING:
    from coordinator.domain.candidate import Candidate, Settlement
    from coordinator.domain.settings import Settings
    from coordinator.fleet.intake import Intake
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock


class Settling:
    """Used by the steward only."""

    def __init__(self, *, bus: Bus, clock: Clock, intake: Intake, ledger: Ledger, settings: Settings) -> None:
        self._bus = bus
        self._clock = clock
        self._intake = intake
        self._ledger = ledger
        self._settings = settings

    def landed(self, entry: LedgerEntry, settlement: Settlement) -> None:
        """Its work is on the target, whatever the ledger thought of it meanwhile."""
        task_id = entry.task.id
        reason = f"landed as {settlement.commit[:10]}"
        with self._ledger.batch():
            if entry.state is TaskState.VALIDATING:
                self._ledger.move(task_id, TaskState.LANDING, "passed the gate, landing")
            elif entry.state is not TaskState.LANDING:  # it was on the target before a cancel reached the lander
                self._ledger.move(task_id, TaskState.PENDING, "had landed already")
            self._ledger.move(task_id, TaskState.COMPLETED, reason, **{**FRESH, "commit": settlement.commit})
            self._close_attempt(task_id, entry.generation, Ending.LANDED, reason)
            self._bus.publish(
                TaskLanded(
                    task=task_id,
                    generation=entry.generation,
                    commit=settlement.commit,
                    files=settlement.files,
                    target=self._settings.land.target,
                    title=entry.task.headline,
                    untested=settlement.verdict.untested if settlement.verdict is not None else "",
                )
            )
            self._rearm(entry)
        self._intake.dependencies_changed()

    def ended(self, entry: LedgerEntry, ending: Ending, reason: str, *, feedback: str = "") -> None:
        """It did not land. ``feedback`` goes into the next brief; empty: the reason does."""
        decision = retry.decide(
            ending,
            attempts=entry.attempts,
            tries=entry.tries,
            max_attempts=entry.task.max_attempts or self._settings.fleet.max_attempts,
            backoff_s=self._settings.fleet.backoff_s,
            chance=random.random(),
        )
        task_id, text = entry.task.id, f"{ending.replace('_', ' ')}: {reason}"
        changes = {"attempts": decision.attempts, "feedback": feedback or text}
        with self._ledger.batch():
            self._close_attempt(task_id, entry.generation, ending, reason)
            if ending is Ending.CANCELLED:
                self._ledger.move(task_id, TaskState.CANCELLED, reason, cancel="", **changes)
            elif entry.hold:
                self._ledger.move(task_id, TaskState.HELD, f"held by the operator after {text}", hold=False, **changes)
            elif decision.again:
                due = self._clock.now().timestamp() + decision.after_s
                self._ledger.move(task_id, TaskState.PENDING, f"{text}; {decision.why}", not_before=due, **changes)
            else:
                self._ledger.move(task_id, TaskState.FAILED, f"{text} ({decision.why})", **changes)
                self._rearm(entry)
        self._intake.dependencies_changed()

    def superseded(self, candidate: Candidate, reason: str) -> None:
        """An old generation asked to land: its row says why it did not; the task, which has a new owner, is not touched."""
        self._close_attempt(candidate.task.id, candidate.generation, Ending.STALE, reason)

    def _rearm(self, entry: LedgerEntry) -> None:
        """A task with a schedule is pending again until its next run."""
        if entry.task.schedule:
            due = self._intake.next_run(entry.task)
            reason = "waits for its next scheduled run"
            self._ledger.move(entry.task.id, TaskState.PENDING, reason, **{**FRESH, "not_before": due})

    def _close_attempt(self, task_id: str, generation: int, ending: Ending, reason: str) -> None:
        row = self._ledger.record(
            task_id, generation, ended_at=self._clock.now().isoformat(), ending=ending, reason=reason
        )
        self._bus.publish(
            AttemptEnded(
                task=task_id,
                generation=generation,
                ending=ending,
                reason=reason,
                agent=row.agent,
                duration_s=row.duration_s,
            )
        )

"""What becomes of a task when an attempt at it is over: landed, again later, held, failed or cancelled.

Owns one invariant: the attempt's row, the task's move and their events are one transaction. It decides nothing:
``policy.retry`` does; and it never touches an agent or a tree.
"""

from __future__ import annotations

import random
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.attempt import Ending
from coordinator.domain.event import AttemptEnded, TaskLanded
from coordinator.domain.task import TaskState
from coordinator.fleet.ledger import FRESH
from coordinator.policy import retry
from coordinator.policy.retry import Fate

if TYPE_CHECKING:
    from coordinator.domain.candidate import Candidate, Settlement
    from coordinator.domain.settings import Settings
    from coordinator.fleet.collector import Gathered
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

    def found(self, entry: LedgerEntry, commit: str, reason: str) -> None:
        """Its work is on the target although nobody wrote that down: the daemon died in between, or the ledger was lost."""
        task_id = entry.task.id
        with self._ledger.batch():
            if entry.state is TaskState.VALIDATING:
                self._ledger.move(task_id, TaskState.LANDING, reason)
            elif entry.state in (TaskState.FAILED, TaskState.CANCELLED, TaskState.REJECTED):
                self._ledger.move(task_id, TaskState.PENDING, reason)
            self._ledger.move(task_id, TaskState.COMPLETED, reason, commit=commit)
            row = self._ledger.attempt(task_id, entry.generation)
            if row is None or row.ended_at:
                return
            self._close_attempt(task_id, entry.generation, Ending.LANDED, reason)
            self._bus.publish(
                TaskLanded(
                    task=task_id,
                    generation=entry.generation,
                    commit=commit,
                    files=(),
                    target=self._settings.land.target,
                    title=entry.task.headline,
                )
            )

    def refused(self, entry: LedgerEntry, settlement: Settlement) -> None:
        """It was finished, and does not land."""
        told = _told(settlement.feedback or settlement.reason, settlement.candidate.commit)
        self._end(entry, settlement.ending, settlement.reason, told, quick=False)

    def ended(self, entry: LedgerEntry, ending: Ending, reason: str, left: Gathered | None = None) -> None:
        """It came to no end that could be judged. ``left`` is what was found of it, None when it was not looked for."""
        feedback = _told(left.feedback or reason, left.work) if left is not None else reason
        quick = left is not None and left.lived_s < self._settings.fleet.quick_death_s
        self._end(entry, ending, reason, feedback, quick=quick)

    def _end(self, entry: LedgerEntry, ending: Ending, reason: str, feedback: str, *, quick: bool) -> None:
        fleet = self._settings.fleet
        decision = retry.decide(
            ending,
            retry.Past(attempts=entry.attempts, crashes=entry.crashes, tries=entry.tries),
            backoff_s=fleet.backoff_s,
            chance=random.random(),
            crash_loop=fleet.crash_loop,
            max_attempts=entry.task.max_attempts or fleet.max_attempts,
            quick=quick,
            resumed=bool(entry.resume),
        )
        task_id, text = entry.task.id, f"{ending.replace('_', ' ')}: {reason}"
        session = self._session(entry) if decision.resume else ""
        changes: dict[str, Any] = {
            "attempts": decision.past.attempts,
            "crashes": decision.past.crashes,
            "feedback": feedback,
            "resume": session,
            "tries": decision.past.tries,
        }
        with self._ledger.batch():
            self._close_attempt(task_id, entry.generation, ending, reason)
            if ending is Ending.CANCELLED:
                self._ledger.move(task_id, TaskState.CANCELLED, reason, **{**changes, "cancel": "", "resume": ""})
            elif entry.hold:
                self._ledger.move(task_id, TaskState.HELD, f"held by the operator after {text}", hold=False, **changes)
            elif decision.fate is Fate.AGAIN:
                due = self._clock.now().timestamp() + decision.after_s
                goes_on = f"{text}; {decision.why}" + (", the same conversation goes on" if session else "")
                self._ledger.move(task_id, TaskState.PENDING, goes_on, not_before=due, **changes)
            elif decision.fate is Fate.HELD:
                self._ledger.move(
                    task_id, TaskState.HELD, f"{text} ({decision.why}){_way_on(ending, reason)}", **changes
                )
            else:
                self._ledger.move(task_id, TaskState.FAILED, f"{text} ({decision.why})", **changes)
                self._rearm(entry)
        self._intake.dependencies_changed()

    def superseded(self, candidate: Candidate, reason: str) -> None:
        """An old generation asked to land: its row says why it did not; the task, which has a new owner, is not touched."""
        self._close_attempt(candidate.task.id, candidate.generation, Ending.STALE, reason)

    def _session(self, entry: LedgerEntry) -> str:
        """What the attempt left to go on with; one that did not come that far leaves what it was given."""
        row = self._ledger.attempt(entry.task.id, entry.generation)
        return (row.session if row is not None else "") or entry.resume

    def _rearm(self, entry: LedgerEntry) -> None:
        """A task with a schedule is pending again until its next run."""
        if entry.task.schedule:
            due = self._intake.next_run(entry.task)
            reason = "waits for its next scheduled run"
            self._ledger.move(entry.task.id, TaskState.PENDING, reason, **{**FRESH, "not_before": due})

    def _close_attempt(self, task_id: str, generation: int, ending: Ending, reason: str) -> None:
        now = self._clock.now()
        row = self._ledger.record(task_id, generation, ended_at=now.isoformat(), ending=ending, reason=reason)
        claimed = datetime.fromisoformat(row.claimed_at) if row.claimed_at else now
        self._bus.publish(
            AttemptEnded(
                task=task_id,
                generation=generation,
                ending=ending,
                reason=reason,
                agent=row.agent,
                duration_s=row.duration_s,
                role=row.role,
                took_s=round(max((now - claimed).total_seconds(), row.duration_s), 3),
            )
        )


def _told(feedback: str, work: str) -> str:
    """A new attempt begins in a fresh tree, also when the conversation goes on: it has to be told where its work is."""
    if not work:
        return feedback
    where = f"What was changed is not in this working tree. It is commit {work}: `git show {work[:12]}` shows it"
    return f"{where}, `git cherry-pick --no-commit {work[:12]}` brings it back.\n\n{feedback}"


_WHOSE: Final = (
    ("nobody has told what", "name the model's price in [[gateway.prices]]"),
    ("no call may cost more", "raise call_budget_usd in [gateway]"),
    ("the day's budget", "wait for tomorrow (UTC) or raise day_budget_usd in [gateway]"),
    ("the fleet's budget", "raise total_budget_usd in [gateway]"),
)
"""What the gateway says of a budget that is not the task's own, and what would help."""


def _way_on(ending: Ending, reason: str) -> str:
    """What a person may do about it; ``explain`` shows the end of the output beside it."""
    if ending is not Ending.OVER_BUDGET:
        return ""
    what = next((what for said, what in _WHOSE if said in reason), "raise budget_usd in its task or its role card")
    return f"; {what}, then `coordinator tasks release` goes on where it stopped"

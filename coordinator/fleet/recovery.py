"""What a daemon that starts makes of what it finds: files, locks and git, before anything is dispatched.

Owns one invariant: a task that has landed is completed, one whose claim is held goes on, one that was judged is judged
again, and one that was offered but not taken is offered anew; in whatever order the last daemon died, even without its
ledger. Agents that still live are the pool's to adopt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.domain.candidate import Candidate
from coordinator.domain.task import OWNED, TaskState
from coordinator.fleet import sighting

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.fleet.intake import Intake
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.fleet.ready import ReadyBoard
    from coordinator.fleet.settling import Settling
    from coordinator.fleet.workspace import Workspaces
    from coordinator.kit.git import Git
    from coordinator.sdk.layout import Layout

_SEEN = "landed_through"
"""Fact: the tip up to which the ledger knows what landed. A ledger that is new or empty reads the whole history."""

_UNJUDGED = (TaskState.VALIDATING, TaskState.LANDING)


class Recovery:
    """Used once per start, in the order ``remember_landed``, (first fold of the spool), ``settle_offers``, ``resume``."""

    def __init__(
        self,
        *,
        board: ReadyBoard,
        git: Git,
        intake: Intake,
        layout: Layout,
        ledger: Ledger,
        settling: Settling,
        target: str,
        workspaces: Workspaces,
    ) -> None:
        self._board = board
        self._git = git
        self._intake = intake
        self._layout = layout
        self._ledger = ledger
        self._settling = settling
        self._target = target
        self._workspaces = workspaces

    async def remember_landed(self) -> None:
        """Read the trailers of the target branch; complete what landed while nobody wrote it down."""
        tip = await self._git.resolve(f"refs/heads/{self._target}")
        seen = self._ledger.read_fact(_SEEN) if len(self._ledger) else None
        known = seen is not None and tip is not None and await self._is_before(seen, tip)
        landed = await self._git.landed(f"refs/heads/{self._target}", since=seen if known else None)
        self._intake.landed.update(landed)
        with self._ledger.batch():
            for task_id, commit in landed.items():
                entry = self._ledger.find(task_id)
                if entry is not None and entry.commit != commit and not entry.task.schedule:
                    self._complete(entry, commit)
            self._ledger.fact(_SEEN, tip)

    async def _is_before(self, seen: str, tip: str) -> bool:
        return await self._git.resolve(seen) is not None and await self._git.is_ancestor(seen, tip)

    def _complete(self, entry: LedgerEntry, commit: str) -> None:
        if entry.state not in (TaskState.COMPLETED, TaskState.READY, *OWNED):  # else it was retried on purpose
            self._settling.found(entry, commit, f"found on {self._target} as {commit[:10]}")

    def settle_offers(self) -> None:
        """Take back every ready entry that nobody took; those that were claimed are seen in the next turn."""
        for task_id in self._board.load():
            entry = self._ledger.find(task_id)
            if entry is None or entry.state is not TaskState.READY:
                self._board.withdraw(task_id)
        for entry in self._ledger.in_state(TaskState.READY):
            record = sighting.look(self._layout, entry.task.id, entry.generation).record
            if record is not None and record.generation == entry.generation:
                continue
            if self._board.withdraw(entry.task.id, entry.generation):
                reason = "was ready when the daemon stopped"
                self._ledger.move(
                    entry.task.id,
                    TaskState.PENDING,
                    reason,
                    generation=entry.generation - 1,
                    tries=max(entry.tries - 1, 0),
                )

    async def resume(self, submit: Callable[[Candidate], None]) -> int:
        """Hand what was waiting for the gate to it again; returns how many."""
        count = 0
        for entry in self._ledger.in_state(*_UNJUDGED):
            row = self._ledger.attempt(entry.task.id, entry.generation)
            base, agent = (row.base, row.agent) if row is not None else ("", "")
            left = await self._workspaces.collect(entry.task.id, entry.generation, base, agent=agent)
            if left.candidate_commit is None or not left.changed:
                reason = "its snapshot is gone; it is tried again"
                self._ledger.move(entry.task.id, TaskState.PENDING, reason)
                continue
            if entry.state is TaskState.LANDING:
                self._ledger.move(
                    entry.task.id, TaskState.VALIDATING, "the daemon stopped while it landed; judged again"
                )
            submit(
                Candidate(
                    task=entry.task,
                    generation=entry.generation,
                    base=base,
                    commit=left.candidate_commit,
                    message=left.message,
                    agent=agent,
                )
            )
            count += 1
        return count

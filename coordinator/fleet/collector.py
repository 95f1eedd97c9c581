"""What an ended attempt left behind, gathered into a candidate or a reason.

Owns one invariant: everything the agent wrote is in a ref before anything is decided about it or cleaned. Whether the
candidate is any good is the gate's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Ending, Outcome
from coordinator.domain.candidate import Candidate
from coordinator.fleet import sighting

if TYPE_CHECKING:
    from coordinator.domain.attempt import Result
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.fleet.workspace import Workspaces
    from coordinator.sdk.layout import Layout

_TEMPFAIL: Final = 75
"""EX_TEMPFAIL of sysexits.h: an agent's command says "not now" (no login, no quota, provider down) with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Either ``candidate`` is set and ``ending`` is None, or ``ending`` says why there is none."""

    candidate: Candidate | None
    ending: Ending | None
    feedback: str
    reason: str


class Collector:
    """Reads results, takes snapshots, disposes of worktrees that are safe in a ref."""

    def __init__(self, layout: Layout, ledger: Ledger, workspaces: Workspaces) -> None:
        self._layout = layout
        self._ledger = ledger
        self._workspaces = workspaces

    async def gather(self, entry: LedgerEntry, agent: str) -> Gathered:
        """Never raises for anything that an agent could have done."""
        task_id, generation = entry.task.id, entry.generation
        result = sighting.read_result(self._layout, task_id, generation)
        row = self._ledger.attempt(task_id, generation)
        order = sighting.read_order(self._layout, task_id, generation)
        base = row.base if row is not None and row.base else (order.base if order is not None else "")
        collected = await self._workspaces.collect(task_id, generation, base, agent=agent)
        self._ledger.record(
            task_id,
            generation,
            base=base,
            rescue=collected.evidence,
            exit_code=result.exit_code if result is not None else None,
            cost_usd=result.cost_usd if result is not None else 0.0,
            duration_s=result.duration_s if result is not None else 0.0,
        )
        if await self._workspaces.dispose(task_id, generation, collected) is False and collected.note:
            self._ledger.note(task_id, reason=f"worktree kept: {collected.note}")
        ending, reason = self._ending(entry, result)
        if ending is None and collected.candidate_commit is None:
            ending, reason = Ending.CRASHED, f"its work could not be read: {collected.note or 'no worktree'}"
        if ending is None and not collected.changed:
            ending, reason = Ending.EMPTY, self._said(result) or "the attempt changed nothing"
        candidate = None
        if ending is None and collected.candidate_commit is not None:
            candidate = Candidate(
                task=entry.task,
                generation=generation,
                base=base,
                commit=collected.candidate_commit,
                message=collected.message,
                agent=agent,
            )
        log = sighting.last_lines(self._layout.attempt(task_id, generation) / "agent.log")
        feedback = f"{reason}\n\nThe end of the agent's output:\n\n```\n{log}\n```" if ending and log else reason
        return Gathered(candidate=candidate, ending=ending, reason=reason, feedback=feedback)

    def _ending(self, entry: LedgerEntry, result: Result | None) -> tuple[Ending | None, str]:
        if result is None:
            return Ending.CRASHED, "the agent process ended without a result"
        said = self._said(result)
        match result.outcome:
            case Outcome.DONE:
                return None, ""
            case Outcome.OVER_TIME:
                return Ending.OVER_TIME, said or "over its time limit"
            case Outcome.STOPPED:
                return Ending.STOPPED, said or "stopped from outside"
            case Outcome.UNSTARTED:
                return Ending.UNSTARTED, said or "its command could not be started"
            case _ if result.exit_code == _TEMPFAIL:
                return Ending.UNAVAILABLE, said or "what the agent needs is not there (exit code 75)"
            case _:
                log = self._layout.attempt(entry.task.id, entry.generation) / "agent.log"
                last = sighting.last_lines(log).rpartition("\n")[2]
                return Ending.FAILED, said or last or f"the agent said {result.outcome!r}"

    @staticmethod
    def _said(result: Result | None) -> str:
        if result is None:
            return ""
        return (result.summary or result.reason).strip()[:300]

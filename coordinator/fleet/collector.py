"""What an ended attempt left behind, gathered into a candidate or a reason.

Owns one invariant: everything the agent wrote is in a ref before anything is decided about it or cleaned. Whether the
candidate is any good is the gate's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Ending, Outcome, Reason
from coordinator.domain.candidate import Candidate
from coordinator.fleet import sighting

if TYPE_CHECKING:
    from coordinator.domain.attempt import Order, Result
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.fleet.sighting import Sighting
    from coordinator.fleet.workspace import Collected, Workspaces
    from coordinator.sdk.layout import Layout

_LINES_TOLD: Final = 20
"""Lines of an agent's output that the next brief and ``explain`` repeat."""
_LONGEST_LINE: Final = 500
_TOLD_BYTES: Final = 8_000

_NAMES_ITS_SESSION: Final = frozenset({"claude"})
"""Drivers whose program takes the session id of our choice, so that it is known even when nothing could be said."""

_NAMED: Final = frozenset(Reason)

_TEMPFAIL: Final = 75
"""EX_TEMPFAIL of sysexits.h: an agent's command says "not now" (no login, no quota, provider down) with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Either ``candidate`` is set and ``ending`` is None, or ``ending`` says why there is none; neither: gather again ``later``,
    when the machine has room for it.

    ``lived_s`` is from its start to its last sign of life. ``retry_at`` (epoch seconds) is when what ran out is there again,
    0 when nobody knows. ``work`` is the commit that holds what it had changed, empty when it had changed nothing.
    """

    candidate: Candidate | None
    ending: Ending | None
    feedback: str
    later: bool = False
    lived_s: float = 0.0
    reason: str
    retry_at: float = 0.0
    work: str = ""


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
        if collected.later:
            return Gathered(candidate=None, ending=None, feedback="", later=True, reason=collected.note)
        lived_s = self._record(entry, base, collected.evidence, order, result)
        if await self._workspaces.dispose(task_id, generation, collected) is False and collected.note:
            self._ledger.note(task_id, reason=f"worktree kept: {collected.note}")
        ending, reason = self._ending(entry, result)
        if ending is None and collected.candidate_commit is None:
            ending, reason = Ending.CRASHED, f"its work could not be read: {collected.note or 'no worktree'}"
        if ending is None and not collected.changed:
            denied = result is not None and result.reason == Reason.DENIED
            ending, reason = (Ending.DENIED if denied else Ending.EMPTY), self._said(result) or "it changed nothing"
        finished = ending is None and collected.candidate_commit is not None
        log = self._end_of_output(task_id, generation)
        feedback = f"{reason}\n\nThe end of the agent's output:\n\n```\n{log}\n```" if ending and log else reason
        return Gathered(
            candidate=_candidate(entry, base, agent, collected) if finished else None,
            ending=ending,
            reason=reason,
            feedback=feedback,
            lived_s=lived_s,
            retry_at=result.retry_at if result is not None else 0.0,
            work=(collected.candidate_commit or "") if collected.changed else "",
        )

    def _record(
        self, entry: LedgerEntry, base: str, evidence: str, order: Order | None, result: Result | None
    ) -> float:
        """Keep what is known of the attempt; returns how long it lived, in seconds."""
        task_id, generation = entry.task.id, entry.generation
        seen = sighting.look(self._layout, task_id, generation)
        lived_s = result.duration_s if result is not None else sighting.lived_s(self._layout, task_id, seen)
        spent = result or seen.vitals
        self._ledger.record(
            task_id,
            generation,
            base=base,
            rescue=evidence,
            exit_code=result.exit_code if result is not None else None,
            cost_usd=spent.cost_usd if spent is not None else 0.0,
            duration_s=lived_s,
            session=_session(order, result, seen),
            turns=spent.turns if spent is not None else 0,
        )
        return lived_s

    def _end_of_output(self, task_id: str, generation: int) -> str:
        """The last lines of what it said to people."""
        text = sighting.last_lines(self._layout.attempt(task_id, generation) / "agent.log", _TOLD_BYTES)
        return "\n".join(line[:_LONGEST_LINE] for line in text.splitlines()[-_LINES_TOLD:])

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
            case _ if result.reason in _NAMED:
                return Ending(result.reason), said or result.reason.replace("_", " ")
            case _ if result.reason.startswith("signal "):
                return Ending.CRASHED, said or f"its command was ended by {result.reason}"
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


def _candidate(entry: LedgerEntry, base: str, agent: str, collected: Collected) -> Candidate:
    return Candidate(
        task=entry.task,
        generation=entry.generation,
        base=base,
        commit=collected.candidate_commit or "",
        message=collected.message,
        agent=agent,
    )


def _session(order: Order | None, result: Result | None, seen: Sighting) -> str:
    """What a later attempt may go on with: what the agent said; when it could not, the one it had been given, provided
    that there is something in it."""
    if result is not None and result.session:
        return result.session
    if order is None or order.driver not in _NAMES_ITS_SESSION or seen.vitals is None or not seen.vitals.turns:
        return ""
    return order.resume or order.session

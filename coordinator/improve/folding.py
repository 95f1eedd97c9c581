"""Brings what is remembered of one tool up to what it said now.

Owns one invariant: the rows, the tool's last fact and the counts of the day change together with one report, and a report that
was left out changes none of them but the time. What a report means for a finding is ``policy.lifecycle``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapters import ADAPTERS
from coordinator.domain.finding import REPORTING, FindingState, ScanStatus
from coordinator.improve.register import ScanFact
from coordinator.policy.lifecycle import Fold, fold

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from coordinator.domain.finding import ScanReport
    from coordinator.improve.register import FindingRegister
    from coordinator.improve.scanner import Look
    from coordinator.policy.lifecycle import KnownFinding

_LEFT_TO_HANDS: Final = frozenset({FindingState.OPEN, FindingState.REOPENED})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldReport:
    """One tool's scan compared with what was known.

    ``opened`` counts new and returned findings, ``reopened`` the returned ones among them, ``closed`` those gone, ``total``
    all that the tool reported. ``by_hand`` are open ones that no agent of ours can mend safely: they need a model's role or a
    person. ``queued`` is the number of task files written, ``removed`` of those taken away. ``unchanged``: nothing that the
    answer depends on had changed, so the tool was not run. ``remedy`` says what to do about a tool that is not here.
    """

    by_hand: int = 0
    closed: int = 0
    commit: str = ""
    opened: int = 0
    queued: int = 0
    reason: str = ""
    remedy: str = ""
    removed: int = 0
    reopened: int = 0
    status: ScanStatus
    took_s: float = 0.0
    tool: str
    total: int = 0
    unchanged: bool = False


def fold_look(
    register: FindingRegister, look: Look, *, at: datetime, commit: str, completed: Collection[str]
) -> FoldReport:
    """``completed`` are tasks whose work was on the target before ``commit`` was chosen."""
    tool = look.adapter.name
    last = register.scans().get(tool) or ScanFact(at=at.isoformat(), status=ScanStatus.UNAVAILABLE, tool=tool)
    if look.report is None:
        register.keep_scan(replace(last, at=at.isoformat(), commit=commit))
        return _unchanged(last, commit)
    known = register.known()
    folded = fold(known, look.report, at=at.isoformat(), completed=completed, renames=look.renames)
    known = {mark: one for mark, one in known.items() if mark not in folded.dropped}
    known |= {one.finding.fingerprint: one for one in folded.changed}
    by_hand = sum(needs_a_hand(one) for one in known.values() if one.finding.tool == tool)
    register.keep(
        folded.changed,
        dropped=folded.dropped,
        seen=(found.fingerprint for found in look.report.findings),
        at=at.isoformat(),
    )
    register.keep_scan(_fact(last, look, look.report, at=at.isoformat(), by_hand=by_hand, commit=commit))
    register.count_day(at, tool, found=folded.opened, fixed=folded.closed, reopened=folded.reopened)
    return _told(folded, look, look.report, by_hand=by_hand, commit=commit)


def _fact(last: ScanFact, look: Look, report: ScanReport, *, at: str, by_hand: int, commit: str) -> ScanFact:
    fact = replace(last, at=at, reason=report.reason, remedy=look.remedy, status=report.status, took_s=report.took_s)
    if report.status not in REPORTING:
        return fact
    return replace(
        fact,
        by_hand=by_hand,
        commit=commit,
        inputs=look.inputs,
        looked_at=at,
        options=report.options,
        total=len(report.findings),
        version=report.version,
    )


def _told(folded: Fold, look: Look, report: ScanReport, *, by_hand: int, commit: str) -> FoldReport:
    return FoldReport(
        by_hand=by_hand,
        closed=folded.closed,
        commit=commit,
        opened=folded.opened + folded.reopened,
        reason=report.reason,
        remedy=look.remedy,
        reopened=folded.reopened,
        status=report.status,
        took_s=report.took_s,
        tool=report.tool,
        total=len(report.findings),
    )


def _unchanged(last: ScanFact, commit: str) -> FoldReport:
    return FoldReport(
        by_hand=last.by_hand,
        commit=commit,
        reason=last.reason,
        status=ScanStatus(last.status),
        tool=last.tool,
        total=last.total,
        unchanged=True,
    )


def needs_a_hand(one: KnownFinding) -> bool:
    """Whether no fix of a tool's own will mend it: it is for a model's role or a person."""
    adapter = ADAPTERS.get(one.finding.tool)
    mechanical = adapter is not None and one.finding.fix in adapter.fixes
    return one.state in _LEFT_TO_HANDS and (not mechanical or bool(one.reason))

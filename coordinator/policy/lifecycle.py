"""The states of findings: what one tool's report, a rename, a person's word or a task's fate makes of what is known.

Owns one invariant: only a report that may close (``CLOSING``) closes, and only what it could have seen; a dismissal is undone
by a person alone. It is not a store: rows come in as values, and what should change goes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.finding import CLOSING, HOUSED, SEEN, FindingState
from coordinator.policy.kinship import kindred

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from coordinator.domain.finding import Finding, ScanReport

MAX_RETURNS: Final = 3
"""A finding fixed and seen again this often is left to a person: two rules may be undoing each other's fixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFinding:
    """A finding and what we remember of it.

    ``returns`` counts how often it was seen again after having been fixed, ``fixed_by`` is the task that had mended it before
    it last returned. ``task`` is the task that is to mend it or, once fixed, did. A ``reason`` is why a person dismissed it, or
    else why no task is made of it although somebody could mend it. ``first_seen`` and ``closed_at`` are wall times in ISO
    format, empty: not known yet. A dismissed one is closed while the tool no longer tells of it; it stays dismissed.
    """

    closed_at: str = ""
    finding: Finding
    first_seen: str = ""
    fixed_by: str = ""
    reason: str = ""
    returns: int = 0
    state: FindingState = FindingState.OPEN
    task: str = ""

    @property
    def waiting(self) -> FindingState:
        """Its state while no task has it."""
        return FindingState.REOPENED if self.returns else FindingState.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """``changed`` are the rows to be written, ``dropped`` fingerprints of rows that another one of ``changed`` takes on (its
    file has another name now, or it is told in other words); the counts are of findings that changed state in this fold,
    ``opened`` of new ones alone.
    """

    changed: tuple[KnownFinding, ...] = ()
    closed: int = 0
    dropped: tuple[str, ...] = ()
    opened: int = 0
    reopened: int = 0


def fold(
    known: Mapping[str, KnownFinding],
    report: ScanReport,
    *,
    at: str = "",
    completed: Collection[str] = (),
    renames: Mapping[str, str] | None = None,
) -> Fold:
    """Compare one tool's report with what is known (by fingerprint).

    ``completed`` are tasks whose work was on the target before the scanned commit was chosen: a finding that one of
    them was to mend and that is still seen cannot be mended that way, and no further task is made of it. ``renames`` are, by
    their old path, the files that were renamed since this tool last looked.
    """
    moved, dropped = _follow(known, report, renames or {})
    moved, dropped = _with_retold(known, report, moved, dropped)
    now = {fingerprint: one for fingerprint, one in known.items() if fingerprint not in dropped} | moved
    changed = dict(moved)
    closed = opened = reopened = 0
    for finding in report.findings:
        old = now.get(finding.fingerprint)
        new = KnownFinding(finding=finding, first_seen=at) if old is None else _seen_again(old, finding, completed)
        opened += old is None
        reopened += old is not None and old.state is FindingState.FIXED
        if new != old:
            changed[finding.fingerprint] = new
    if report.status in CLOSING:
        for one in _gone(now, report):
            if one.state is FindingState.DISMISSED:
                changed[one.finding.fingerprint] = replace(one, closed_at=at)
                continue
            changed[one.finding.fingerprint] = replace(one, closed_at=at, reason="", state=FindingState.FIXED)
            closed += 1
    return Fold(
        changed=tuple(changed.values()),
        closed=closed,
        dropped=tuple(sorted(dropped - changed.keys())),
        opened=opened,
        reopened=reopened,
    )


def _follow(
    known: Mapping[str, KnownFinding], report: ScanReport, renames: Mapping[str, str]
) -> tuple[dict[str, KnownFinding], set[str]]:
    """Rows of the tool whose file was renamed, under their new fingerprint, and the fingerprints they had.

    Should there be a row of the new name already, a finding of long ago, it gives way; but a person's dismissal never does.
    """
    moved: dict[str, KnownFinding] = {}
    dropped: set[str] = set()
    for fingerprint, one in known.items():
        path = renames.get(one.finding.place.path) if renames and one.finding.tool == report.tool else None
        if path is None:
            continue
        finding = one.finding.renamed(path)
        there = known.get(finding.fingerprint)
        dropped.add(fingerprint)
        if there is None or there.state is not FindingState.DISMISSED:
            moved[finding.fingerprint] = replace(one, finding=finding)
    return moved, dropped


def _with_retold(
    known: Mapping[str, KnownFinding], report: ScanReport, moved: dict[str, KnownFinding], dropped: set[str]
) -> tuple[dict[str, KnownFinding], set[str]]:
    """Rows under a new fingerprint and those that gave way, once what is told in other words is known as well."""
    now = {mark: one for mark, one in known.items() if mark not in dropped}
    now |= moved
    retold = _retold(now, report)
    kept = {mark: one for mark, one in moved.items() if mark not in retold}
    return kept | {one.finding.fingerprint: one for one in retold.values()}, dropped | retold.keys()


def _retold(known: Mapping[str, KnownFinding], report: ScanReport) -> dict[str, KnownFinding]:
    """Rows by the fingerprint they had, each as what the report calls the same finding now."""
    fresh = {one.fingerprint: one for one in report.findings if one.fingerprint not in known}
    gone = {one.finding.fingerprint: one for one in _gone(known, report)} if fresh else {}
    pairs = kindred((one.finding for one in gone.values()), fresh.values())
    return {was: replace(gone[was], finding=fresh[now]) for now, was in pairs.items()}


def _gone(known: Mapping[str, KnownFinding], report: ScanReport) -> Iterator[KnownFinding]:
    """What was there at the last look, and what the tool would have reported if it were still there."""
    seen = {finding.fingerprint for finding in report.findings}
    for fingerprint, one in known.items():
        there = one.state in SEEN or (one.state is FindingState.DISMISSED and not one.closed_at)
        if one.finding.tool == report.tool and there and fingerprint not in seen and not _hidden(one.finding, report):
            yield one


def _hidden(finding: Finding, report: ScanReport) -> bool:
    """Whether the tool could not have seen the finding; why it could not read a file is itself always seen."""
    return finding.category != "syntax" and report.hides(finding.place.path)


def _seen_again(old: KnownFinding, finding: Finding, completed: Collection[str]) -> KnownFinding:
    if old.state is FindingState.FIXED:
        returns = old.returns + 1
        reason = ""
        if returns >= MAX_RETURNS:
            reason = f"came back {returns} times after it was fixed; two rules may be undoing each other's fixes"
        return replace(
            old,
            closed_at="",
            finding=finding,
            fixed_by=old.task,
            reason=reason,
            returns=returns,
            state=FindingState.REOPENED,
            task="",
        )
    if old.state in HOUSED and old.task in completed:
        reason = f"task {old.task} is completed and a scan still finds it"
        return replace(old, finding=finding, reason=reason, state=old.waiting)
    return replace(old, closed_at="", finding=finding)


def dismiss(known: Iterable[KnownFinding], reason: str) -> Iterator[KnownFinding]:
    """What changes when a person says that these are none; their task goes on without them, or goes."""
    for one in known:
        new = replace(one, reason=reason, state=FindingState.DISMISSED, task="")
        if new != one:
            yield new


def reopen(known: Iterable[KnownFinding]) -> Iterator[KnownFinding]:
    """What changes when a person wants these worked on after all: a dismissal or any other reason against it is taken back.

    A fixed one is left alone: whether it is there again only a scan can say.
    """
    for one in known:
        if one.state is FindingState.DISMISSED:
            yield replace(one, reason="", state=one.waiting)
        elif one.state in SEEN and one.reason:
            yield replace(one, reason="")

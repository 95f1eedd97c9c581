"""From a tool's report to the states of findings, and from open findings to tasks that an agent can finish.

Owns two invariants: a finding is closed only by a scan that looked and did not see it; and one task mends one rule in one
package folder, in files that no other open task of that rule has. It is not a store: rows, files and ledger states come
in as values, and what should change goes out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.finding import FindingState, Fix, ScanStatus, Severity
from coordinator.domain.task import SETTLED, TaskState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from coordinator.domain.finding import Finding, ScanReport

MAX_RETURNS: Final = 3
"""A finding fixed and seen again this often is left to a person: two rules may be undoing each other's fixes."""

PRIORITY_STEP: Final = 10
"""Distance in priority between two severities."""

AT_WORK: Final = frozenset({TaskState.CLAIMED, TaskState.RUNNING, TaskState.VALIDATING, TaskState.LANDING})
"""States in which removing a task's file would throw work away."""

_LONGEST_PATH: Final = 300
"""So that the command line which names all files of a task keeps within what a task file may say."""

_EDITABLE: Final = frozenset({None, TaskState.PENDING, TaskState.BLOCKED, TaskState.REJECTED})
_REUSABLE: Final = frozenset({None, TaskState.PENDING, TaskState.BLOCKED, TaskState.CANCELLED})
_SEEN: Final = frozenset({FindingState.OPEN, FindingState.QUEUED, FindingState.REOPENED})


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFinding:
    """A finding and what we remember of it.

    ``returns`` counts how often it was seen again after having been fixed. ``task`` is the task that is to mend it or,
    once fixed, did. A ``reason`` says why no task is made of it although the tool offers a fix.
    """

    finding: Finding
    reason: str = ""
    returns: int = 0
    state: FindingState = FindingState.OPEN
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """``changed`` are the rows to be written; the counts are of findings that changed state in this fold."""

    changed: tuple[KnownFinding, ...] = ()
    closed: int = 0
    opened: int = 0
    reopened: int = 0


def fold(known: Mapping[str, KnownFinding], report: ScanReport, *, completed: Collection[str] = ()) -> Fold:
    """Compare one tool's report with what is known (by fingerprint).

    ``completed`` are tasks whose work was on the target before the scanned commit was chosen: a finding that one of
    them was to mend and that is still seen cannot be mended that way, and no further task is made of it.
    """
    changed: list[KnownFinding] = []
    closed = opened = reopened = 0
    seen = {finding.fingerprint: finding for finding in report.findings}
    for fingerprint, finding in seen.items():
        old = known.get(fingerprint)
        new = KnownFinding(finding=finding) if old is None else _seen_again(old, finding, completed)
        opened += old is None
        reopened += old is not None and old.state is FindingState.FIXED
        if new != old:
            changed.append(new)
    if report.status is ScanStatus.SCANNED:
        unread = frozenset(report.unread)
        for fingerprint, old in known.items():
            gone = fingerprint not in seen and old.finding.tool == report.tool
            if gone and old.state in _SEEN and not _hidden(old.finding, unread):
                changed.append(replace(old, state=FindingState.FIXED, reason=""))
                closed += 1
    return Fold(changed=tuple(changed), closed=closed, opened=opened, reopened=reopened)


def _hidden(finding: Finding, unread: Collection[str]) -> bool:
    """Whether the tool could not have seen the finding even if it is there; why it could not is itself always seen."""
    return finding.place.path in unread and finding.category != "syntax"


def _seen_again(old: KnownFinding, finding: Finding, completed: Collection[str]) -> KnownFinding:
    if old.state is FindingState.FIXED:
        returns = old.returns + 1
        reason = ""
        if returns >= MAX_RETURNS:
            reason = f"came back {returns} times after it was fixed; two rules may be undoing each other's fixes"
        return KnownFinding(finding=finding, reason=reason, returns=returns, state=FindingState.REOPENED)
    if old.state is FindingState.QUEUED and old.task in completed:
        reason = f"task {old.task} is completed and a scan still finds it"
        return replace(old, finding=finding, reason=reason, state=_waiting_state(old))
    return replace(old, finding=finding)


def _waiting_state(known: KnownFinding) -> FindingState:
    return FindingState.REOPENED if known.returns else FindingState.OPEN


# --- findings to tasks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """What the findings of one task have in common. ``folder`` is relative to the tree, empty for its top."""

    folder: str
    rule: str
    tool: str

    @classmethod
    def of(cls, tool: str, rule: str, path: str) -> GroupKey:
        return cls(folder=path.rpartition("/")[0], rule=rule, tool=tool)

    def task_id(self, number: int) -> str:
        """``ruff-f401-src-pkg-1a2b3c``; from the second one on with ``-2``: another part of the group, or a relapse."""
        mark = hashlib.sha256(f"{self.tool}\0{self.rule}\0{self.folder}".encode()).hexdigest()[:6]
        words = (_slug(self.tool, 12), _slug(self.rule, 24), _slug(self.folder, 40) or "top", mark)
        return "-".join(words) + (f"-{number}" if number > 1 else "")


def _slug(text: str, length: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-length:].strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoTask:
    """A task file of ours as it lies in the spool; ``essence`` identifies what it was written for."""

    essence: str
    files: tuple[str, ...]
    id: str
    rule: str
    tool: str

    @property
    def key(self) -> GroupKey:
        return GroupKey.of(self.tool, self.rule, self.files[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """A task to be written. ``whole``: the fix is safe for every finding that the rule has in these files."""

    findings: tuple[Finding, ...]
    id: str
    key: GroupKey
    priority: int
    whole: bool

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted({finding.place.path for finding in self.findings}))

    def essence(self, salt: str) -> str:
        """Changes when the task would be another one; not when lines only moved. ``salt``: how it is rendered."""
        marks = sorted(finding.fingerprint for finding in self.findings)
        return hashlib.sha256(json.dumps([salt, self.id, self.priority, self.whole, marks]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """``priority`` is that of medium severity. ``max_open`` bounds tasks that are not settled, ``max_files`` each one."""

    max_files: int = 40
    max_open: int = 20
    priority: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """What stands where tasks are kept: our files, other people's names there, and the ledger's word on each id.

    ``salts`` names the tools whose findings an agent can mend, each with the way its tasks are rendered; ``scanned``
    the tools that have looked at least once since the ledger began: only their files may be removed.
    """

    ours: Mapping[str, AutoTask]
    salts: Mapping[str, str]
    scanned: Collection[str]
    states: Mapping[str, TaskState]
    taken: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Task files to write and to remove, and the rows that change with them."""

    changed: tuple[KnownFinding, ...] = ()
    remove: tuple[str, ...] = ()
    write: tuple[TaskGroup, ...] = ()


def place(known: Sequence[KnownFinding], spooled: Spooled, limits: GroupLimits) -> Placement:
    """Decide which task files there should be.

    A file once given to a task stays with it. Tasks that are at work, held, failed or cancelled are left as they are;
    those that wait are rewritten when their group changed and removed when nothing of it is left. Groups without a task
    get one, the most urgent first and different folders before different rules, while fewer than ``max_open`` are open.
    """
    eligible = _eligible(known, spooled)
    kept, homeless = _assign(eligible, spooled, limits)
    still_open = sum(spooled.states.get(task_id) not in SETTLED for task_id in kept)
    drafts = _drafts(homeless, limits)[: max(0, limits.max_open - still_open)]
    fresh = dict(_numbered(drafts, spooled))
    editable = {id_: members for id_, members in kept.items() if members and spooled.states.get(id_) in _EDITABLE}
    mendable = {one.finding.fingerprint for one in eligible}
    partly = {
        _place_key(one.finding)
        for one in known
        if one.state is not FindingState.FIXED and one.finding.fingerprint not in mendable
    }
    write = []
    for task_id, members in (editable | fresh).items():
        group = _group(task_id, members, partly, limits)
        old = spooled.ours.get(task_id)
        if old is None or old.essence != group.essence(spooled.salts[group.key.tool]):
            write.append(group)
    remove = [task.id for task in spooled.ours.values() if task.id not in kept and task.tool in spooled.scanned]
    homes = {one.finding.fingerprint: task_id for task_id, members in (kept | fresh).items() for one in members}
    return Placement(changed=tuple(_rehoused(known, homes, spooled)), remove=tuple(sorted(remove)), write=tuple(write))


def _place_key(finding: Finding) -> tuple[str, str, str]:
    return finding.tool, finding.rule, finding.place.path


def _eligible(known: Iterable[KnownFinding], spooled: Spooled) -> list[KnownFinding]:
    """What an agent can mend now: not what a person dismissed (nor what shares a file and rule with it), not in files
    that the tool cannot read, and not what a landed task should have mended but no scan has looked at since.
    """
    barred: set[tuple[str, str, str]] = set()
    unreadable: set[tuple[str, str]] = set()
    for one in known:
        if one.state is FindingState.DISMISSED and one.finding.fix is Fix.SAFE:
            barred.add(_place_key(one.finding))
        if one.state in _SEEN and one.finding.category == "syntax":
            unreadable.add((one.finding.tool, one.finding.place.path))
    return [
        one
        for one in known
        if one.state in _SEEN
        and one.finding.fix is Fix.SAFE
        and one.finding.tool in spooled.salts
        and not one.reason
        and _place_key(one.finding) not in barred
        and (one.finding.tool, one.finding.place.path) not in unreadable
        and not _unverified(one, spooled)
        and _sayable(one.finding.place.path)
    ]


def _unverified(one: KnownFinding, spooled: Spooled) -> bool:
    return one.state is FindingState.QUEUED and spooled.states.get(one.task) is TaskState.COMPLETED


def _sayable(path: str) -> bool:
    """Whether a path inside the tree can be written in a task file and a command line and be read back the same."""
    inside = not path.startswith(("/", "../"))
    return inside and path.isprintable() and "\\" not in path and len(path) <= _LONGEST_PATH


def _assign(
    eligible: Iterable[KnownFinding], spooled: Spooled, limits: GroupLimits
) -> tuple[dict[str, list[KnownFinding]], dict[GroupKey, dict[str, list[KnownFinding]]]]:
    """Tasks that stay, each with its findings, and findings by group and file that have no task."""
    living = {
        id_: task for id_, task in sorted(spooled.ours.items()) if spooled.states.get(id_) is not TaskState.COMPLETED
    }
    home = {(task.tool, task.rule, path): task.id for task in living.values() for path in task.files}
    members: dict[str, list[KnownFinding]] = {task_id: [] for task_id in living}
    homeless: dict[GroupKey, dict[str, list[KnownFinding]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(eligible, key=_order):
        task_id = home.get(_place_key(one.finding))
        if task_id is None:
            homeless[GroupKey.of(*_place_key(one.finding))][one.finding.place.path].append(one)
        else:
            members[task_id].append(one)
    for task_id, task in living.items():
        if spooled.states.get(task_id) in _EDITABLE and task.key in homeless:
            room = limits.max_files - len({one.finding.place.path for one in members[task_id]})
            paths = homeless[task.key]
            for path in sorted(paths)[: max(0, room)]:
                members[task_id].extend(paths.pop(path))
    kept = {id_: list_ for id_, list_ in members.items() if list_ or spooled.states.get(id_) in AT_WORK}
    return kept, homeless


def _order(one: KnownFinding) -> tuple[str, int, str]:
    return one.finding.place.path, one.finding.place.line, one.finding.fingerprint


def _drafts(
    homeless: Mapping[GroupKey, Mapping[str, list[KnownFinding]]], limits: GroupLimits
) -> list[tuple[GroupKey, list[KnownFinding]]]:
    """Groups cut into tasks, in the order in which they should be done."""
    ranks: dict[tuple[int, str], int] = defaultdict(int)
    ranked = []
    for key in sorted(homeless, key=lambda key: (key.folder, key.rule, key.tool)):
        paths = sorted(homeless[key])
        for part in range(0, len(paths), limits.max_files):
            members = [one for path in paths[part : part + limits.max_files] for one in homeless[key][path]]
            priority = _priority(members, limits)
            rank = ranks[priority, key.folder]
            ranks[priority, key.folder] += 1
            ranked.append(((priority, rank, key.folder, key.rule, key.tool, part), key, members))
    ranked.sort(key=lambda draft: draft[0])
    return [(key, members) for _, key, members in ranked]


def _priority(members: Iterable[KnownFinding], limits: GroupLimits) -> int:
    worst = min(one.finding.severity for one in members)
    return max(1, limits.priority + PRIORITY_STEP * (worst - Severity.MEDIUM))


def _numbered(
    drafts: Iterable[tuple[GroupKey, list[KnownFinding]]], spooled: Spooled
) -> Iterator[tuple[str, list[KnownFinding]]]:
    """Give each draft the first id of its group that no file and no finished task has."""
    used = {*spooled.ours, *spooled.taken}
    for key, members in drafts:
        number = 1
        while key.task_id(number) in used or spooled.states.get(key.task_id(number)) not in _REUSABLE:
            number += 1
        used.add(key.task_id(number))
        yield key.task_id(number), members


def _group(
    task_id: str, members: Sequence[KnownFinding], partly: Collection[tuple[str, str, str]], limits: GroupLimits
) -> TaskGroup:
    findings = tuple(one.finding for one in sorted(members, key=_order))
    return TaskGroup(
        findings=findings,
        id=task_id,
        key=GroupKey.of(*_place_key(findings[0])),
        priority=_priority(members, limits),
        whole=not any(_place_key(finding) in partly for finding in findings),
    )


def _rehoused(known: Iterable[KnownFinding], homes: Mapping[str, str], spooled: Spooled) -> Iterator[KnownFinding]:
    """Rows whose task is now another one, or none any more."""
    for one in known:
        task_id = homes.get(one.finding.fingerprint)
        if task_id is not None:
            new = replace(one, state=FindingState.QUEUED, task=task_id)
        elif one.state is FindingState.QUEUED and not _unverified(one, spooled):
            new = replace(one, state=_waiting_state(one), task="")
        else:
            continue
        if new != one:
            yield new

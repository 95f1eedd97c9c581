"""From open findings to the task files that there should be.

Owns one invariant: no two open tasks mend the same thing by the same kind of hand in the same file. It is not a store: rows,
files and ledger states come in as values, and what should change goes out. States of findings are ``policy.lifecycle``'s, and
what a group is ``policy.grouping``'s.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.finding import HOUSED, SEEN, FindingState, Severity
from coordinator.domain.task import SETTLED, TaskState
from coordinator.policy.grouping import GroupKey, TaskGroup

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from coordinator.domain.finding import Finding, Fix
    from coordinator.policy.grouping import AutoTask, GroupLimits
    from coordinator.policy.lifecycle import KnownFinding

PRIORITY_STEP: Final = 10
"""Distance in priority between two severities."""

AT_WORK: Final = frozenset({TaskState.CLAIMED, TaskState.RUNNING, TaskState.VALIDATING, TaskState.LANDING})
"""States in which removing a task's file would throw work away, and in which its findings are in work."""

RESERVED: Final = 10
"""Places beyond all bounds on open tasks, for vulnerabilities that are critical or high."""

_LONGEST_PATH: Final = 300
"""So that the command line which names all files of a task keeps within what a task file may say."""

_MOST_SPARED: Final = 20
"""Findings of a rule in a file that a model's task names as those that stay."""

_EDITABLE: Final = frozenset({None, TaskState.PENDING, TaskState.BLOCKED, TaskState.REJECTED})
_REUSABLE: Final = frozenset({None, TaskState.PENDING, TaskState.BLOCKED, TaskState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """What stands where tasks are kept: our files, other people's names there, and the ledger's word on each id.

    ``salts`` names the tools whose findings can become tasks, each with the way its tasks are rendered; ``fixes`` the kinds
    of fix that can be applied without a model, by tool; ``scanned`` the tools that have looked at least once since the
    ledger began: only their files may be removed.
    """

    fixes: Mapping[str, Collection[Fix]]
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
    get one, the most urgent first and different folders before different rules, while there is room for it.
    """
    eligible = _eligible(known, spooled, limits)
    kept, homeless = _assign(eligible, spooled, limits)
    fresh = dict(_numbered(_admitted(_drafts(homeless, limits), kept, spooled, limits), spooled))
    editable = {id_: members for id_, members in kept.items() if members and spooled.states.get(id_) in _EDITABLE}
    partly, spared = _partly(known, eligible, spooled), _spared(known)
    write = []
    for task_id, members in (editable | fresh).items():
        group = _sparing(_group(task_id, members, partly, spooled, limits), spared)
        old = spooled.ours.get(task_id)
        if old is None or old.essence != group.essence(spooled.salts[group.key.tool]):
            write.append(group)
    remove = [task.id for task in spooled.ours.values() if task.id not in kept and task.key.tool in spooled.scanned]
    homes = {one.finding.fingerprint: task_id for task_id, members in (kept | fresh).items() for one in members}
    return Placement(changed=tuple(_rehoused(known, homes, spooled)), remove=tuple(sorted(remove)), write=tuple(write))


def _rule_place(finding: Finding) -> tuple[str, str, str]:
    return finding.tool, finding.rule, finding.place.path


def _partly(
    known: Iterable[KnownFinding], eligible: Iterable[KnownFinding], spooled: Spooled
) -> set[tuple[bool, tuple[str, str, str]]]:
    """Rules in files in which a hand cannot mend everything, each with whether that hand is the mechanical one.

    A model is asked for all of a rule in a file, so only what is not to be mended at all stands in its way.
    """
    mendable = {one.finding.fingerprint for one in eligible}
    found = set()
    for one in known:
        if one.state is FindingState.FIXED:
            continue
        lost = one.finding.fingerprint not in mendable
        if lost or one.finding.fix not in spooled.fixes.get(one.finding.tool, ()):
            found.add((True, _rule_place(one.finding)))
        if lost:
            found.add((False, _rule_place(one.finding)))
    return found


def _spared(known: Iterable[KnownFinding]) -> Mapping[tuple[str, str, str], list[Finding]]:
    """What stays, by tool, rule and file."""
    found = defaultdict(list)
    for one in known:
        if _stays(one):
            found[_rule_place(one.finding)].append(one.finding)
    return found


def _sparing(group: TaskGroup, spared: Mapping[tuple[str, str, str], Sequence[Finding]]) -> TaskGroup:
    """With what a model is to leave; a tool's own fix is not asked for where something is to stay."""
    places = dict.fromkeys(map(_rule_place, group.findings))
    stay = () if group.key.mechanical else tuple(one for place in places for one in spared.get(place, ()))
    return replace(group, spared=tuple(sorted(stay, key=lambda one: (one.place, one.kind)))) if stay else group


def _eligible(known: Iterable[KnownFinding], spooled: Spooled, limits: GroupLimits) -> list[KnownFinding]:
    """What somebody can mend now: not what a person dismissed (nor what shares a file and rule with it, where the tool itself
    would mend both), not in files that the tool cannot read, and not what a landed task should have mended but no scan has
    looked at since.
    """
    barred, unreadable = _barred(known, spooled), set()
    for one in known:
        if one.state in SEEN and one.finding.category == "syntax":
            unreadable.add((one.finding.tool, one.finding.place.path))
    return [
        one
        for one in known
        if one.state in SEEN
        and one.finding.tool in spooled.salts
        and not one.reason
        and not _unverified(one, spooled)
        and _sayable(one.finding.place.path)
        and _has_a_hand(one.finding, barred, unreadable, spooled, limits)
    ]


def _barred(known: Iterable[KnownFinding], spooled: Spooled) -> set[tuple[bool, tuple[str, str, str]]]:
    """Rules in files that are not to be touched, by kind of hand: a tool applies its fix to all of a rule in a file. A model
    can be told what to leave, but not of any number.
    """
    stay = [one.finding for one in known if _stays(one)]
    barred = {(True, _rule_place(one)) for one in stay if one.fix in spooled.fixes.get(one.tool, ())}
    return barred | {(False, at) for at, count in Counter(map(_rule_place, stay)).items() if count > _MOST_SPARED}


def _stays(one: KnownFinding) -> bool:
    """It is there, and nobody is to mend it."""
    return (one.state is FindingState.DISMISSED and not one.closed_at) or (one.state in SEEN and bool(one.reason))


def _has_a_hand(
    finding: Finding,
    barred: Collection[tuple[bool, tuple[str, str, str]]],
    unreadable: Collection[tuple[str, str]],
    spooled: Spooled,
    limits: GroupLimits,
) -> bool:
    mechanical = finding.fix in spooled.fixes.get(finding.tool, ())
    if (mechanical, _rule_place(finding)) in barred:
        return False
    if (finding.tool, finding.place.path) in unreadable and (mechanical or finding.category != "syntax"):
        return False
    return mechanical or (bool(limits.model_role) and finding.severity <= limits.model_severity)


def _unverified(one: KnownFinding, spooled: Spooled) -> bool:
    return one.state in HOUSED and spooled.states.get(one.task) is TaskState.COMPLETED


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
    home = {task.key.at(path): task.id for task in living.values() for path in task.files}
    members: dict[str, list[KnownFinding]] = {task_id: [] for task_id in living}
    homeless: dict[GroupKey, dict[str, list[KnownFinding]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(eligible, key=_order):
        key, path = GroupKey.of(one.finding, spooled.fixes), one.finding.place.path
        task_id = home.get(key.at(path))
        if task_id is None:
            homeless[key][path].append(one)
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
    for key in sorted(homeless, key=lambda key: (key.scope, key.subject, key.tool, not key.mechanical)):
        paths = sorted(homeless[key])
        for part in range(0, len(paths), limits.max_files):
            members = [one for path in paths[part : part + limits.max_files] for one in homeless[key][path]]
            priority = _priority(members, limits)
            rank = ranks[priority, key.scope]
            ranks[priority, key.scope] += 1
            ranked.append(((priority, rank, key.scope, key.subject, key.tool, not key.mechanical, part), key, members))
    ranked.sort(key=lambda draft: draft[0])
    return [(key, members) for _, key, members in ranked]


def _admitted(
    drafts: Iterable[tuple[GroupKey, list[KnownFinding]]],
    kept: Iterable[str],
    spooled: Spooled,
    limits: GroupLimits,
) -> Iterator[tuple[GroupKey, list[KnownFinding]]]:
    """Those for which there is room, all in all and for their tool; a grave vulnerability waits for no lint."""
    tools = Counter(spooled.ours[task_id].key.tool for task_id in kept if spooled.states.get(task_id) not in SETTLED)
    for key, members in drafts:
        most = limits.per_tool.get(key.tool, limits.max_per_tool)
        more = (
            RESERVED if limits.max_open and most and any(map(_is_grave, members)) else 0
        )  # 0 is a person's word for none
        if tools.total() < limits.max_open + more and tools[key.tool] < most + more:
            tools[key.tool] += 1
            yield key, members


def _is_grave(one: KnownFinding) -> bool:
    return one.finding.category == "security" and one.finding.severity <= Severity.HIGH


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
    task_id: str,
    members: Sequence[KnownFinding],
    partly: Collection[tuple[bool, tuple[str, str, str]]],
    spooled: Spooled,
    limits: GroupLimits,
) -> TaskGroup:
    findings = tuple(one.finding for one in sorted(members, key=_order))
    key = GroupKey.of(findings[0], spooled.fixes)
    old = spooled.ours.get(task_id)
    return TaskGroup(
        findings=findings,
        id=task_id,
        key=key,
        pinned=old.priority if old is not None else None,
        priority=_priority(members, limits),
        returned=frozenset(one.finding.fingerprint for one in members if one.returns),
        role=limits.role_of(key, findings),
        whole=not any((key.mechanical, _rule_place(finding)) in partly for finding in findings),
    )


def _housed(one: KnownFinding, task: TaskState | None) -> FindingState:
    """What a task failed at is nobody's, though its file still stands and keeps it from being tried the same way again."""
    if task is TaskState.FAILED:
        return one.waiting
    return FindingState.IN_WORK if task in AT_WORK else FindingState.QUEUED


def _rehoused(known: Iterable[KnownFinding], homes: Mapping[str, str], spooled: Spooled) -> Iterator[KnownFinding]:
    """Rows whose task is now another one, or none any more, or in other hands."""
    for one in known:
        task_id = homes.get(one.finding.fingerprint)
        if task_id is not None:
            new = replace(one, state=_housed(one, spooled.states.get(task_id)), task=task_id)
        elif one.state in HOUSED and not _unverified(one, spooled):
            new = replace(one, state=one.waiting, task="")
        else:
            continue
        if new != one:
            yield new

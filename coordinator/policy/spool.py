"""The whole spool judged together: duplicates, cycles, missing dependencies.

Owns one invariant: what is wrong with one task never changes whether another, independent one is accepted. Reading one
file is ``domain.taskfile``'s; what to do about a task that went away is the fleet's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from coordinator.domain.task import Task
    from coordinator.domain.taskfile import ParsedFile

_LONGEST_PATH: Final = 12
"""Ids of a cycle that are spelled out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What the spool wants now.

    ``tasks`` by id, all of them fit to run except those in ``blocked`` (id → cause, one sentence). ``rejected`` are
    ids that somebody wrote and that were not accepted (id → cause); they are in ``tasks`` only when an earlier good
    version is kept. ``unreadable`` are files and folders of which nothing is known at the moment: a task that came
    from there is not gone. ``files`` counts the task files seen.
    """

    blocked: Mapping[str, str] = field(default_factory=dict)
    files: int = 0
    problems: tuple[Problem, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    unreadable: frozenset[str] = frozenset()

    def gone(self, places: Mapping[str, str]) -> frozenset[str]:
        """Of tasks known from before (id → file), those that nobody wants any more: removed, not merely unreadable."""
        return frozenset(
            task_id
            for task_id, file in places.items()
            if task_id not in self.tasks and task_id not in self.rejected and not self.is_unknown(file)
        )

    def is_unknown(self, file: str) -> bool:
        """Whether ``file``, or a folder it is in, cannot be read at the moment."""
        if not self.unreadable:
            return False
        while file:
            if file in self.unreadable:
                return True
            file = file.rpartition("/")[0]
        return False


def combine(
    files: Mapping[str, ParsedFile], known: Collection[str] = (), *, owners: Mapping[str, str] | None = None
) -> SpoolState:
    """Judge all ``files`` (by name) together.

    Of an id that is defined more than once, the definition in the file named by ``owners`` (id → file, from the state
    before) stays, so that nobody takes over a task by writing another of its name; without one, the first by file name
    and line does. The others are reported. ``known`` are ids that count as defined although no file has them.
    """
    problems = [problem for name in sorted(files) for problem in files[name].problems]
    tasks = _one_each(files, owners or {}, problems)
    rejected: dict[str, str] = {}
    for name in sorted(files):
        for task_id, cause in files[name].rejected.items():
            if task_id not in tasks:
                rejected.setdefault(task_id, cause)
    for knot, problem in list(_cycles(tasks, files)):
        problems.append(problem)
        for task_id in knot:
            rejected[task_id] = str(problem)
            del tasks[task_id]
    blocked = _blocked(tasks, rejected, known, files, problems)
    return SpoolState(
        blocked=blocked,
        files=len(files),
        problems=tuple(sorted(problems)),
        rejected=rejected,
        tasks=tasks,
        unreadable=frozenset(name for name, parsed in files.items() if not parsed.readable),
    )


def _one_each(files: Mapping[str, ParsedFile], owners: Mapping[str, str], problems: list[Problem]) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    for name in sorted(files):
        for task in files[name].tasks:
            first = tasks.setdefault(task.id, task)
            if first is task:
                continue
            winner, loser = first, task
            owner = owners.get(task.id)
            if owner == task.file != first.file:
                winner, loser = task, first
                tasks[task.id] = task
            problems.append(
                Problem(
                    file=loser.file,
                    line=loser.line,
                    key="id",
                    message=f'"{task.id}" is also defined at {winner.file}:{winner.line}, which counts',
                    expected="an id that no other task has",
                )
            )
    return tasks


def _blocked(
    tasks: Mapping[str, Task],
    rejected: Mapping[str, str],
    known: Collection[str],
    files: Mapping[str, ParsedFile],
    problems: list[Problem],
) -> dict[str, str]:
    blocked: dict[str, str] = {}
    for task in tasks.values():
        missing = [needed for needed in task.depends_on if needed not in tasks and needed not in known]
        if not missing:
            continue
        blocked[task.id] = "depends on " + "; ".join(
            f"{needed}, which was rejected ({rejected[needed]})"
            if needed in rejected
            else f"{needed}, which no file has"
            for needed in missing
        )
        for needed in missing:
            if needed not in rejected:
                problems.append(
                    Problem(
                        file=task.file,
                        line=_needs_line(task, files),
                        key="depends_on",
                        message=f'task "{task.id}" depends on "{needed}", which no file has',
                        expected="the id of a task",
                    )
                )
    return blocked


def _needs_line(task: Task, files: Mapping[str, ParsedFile]) -> int:
    parsed = files.get(task.file)
    return parsed.needs_lines.get(task.id, task.line) if parsed is not None else task.line


def _cycles(tasks: Mapping[str, Task], files: Mapping[str, ParsedFile]) -> Iterator[tuple[set[str], Problem]]:
    """Each set of tasks that wait for one another, with the problem that names a cycle's path."""
    needs = {
        task.id: [needed for needed in task.depends_on if needed in tasks] for task in tasks.values() if task.depends_on
    }
    for knot in _knots(needs):
        path = _walk_around(knot, needs)
        first = tasks[path[0]]
        itself = len(path) == 2
        message = f'task "{path[0]}" depends on itself' if itself else f"dependencies go in a circle: {_spelled(path)}"
        yield (
            knot,
            Problem(
                file=first.file,
                line=_needs_line(first, files),
                key="depends_on",
                message=message,
                expected="dependencies that end somewhere",
            ),
        )


def _spelled(path: list[str]) -> str:
    if len(path) <= _LONGEST_PATH:
        return " → ".join(path)
    return " → ".join([*path[: _LONGEST_PATH - 2], f"… ({len(path) - _LONGEST_PATH + 1} more)", path[-1]])


def _walk_around(knot: set[str], needs: Mapping[str, list[str]]) -> list[str]:
    """One cycle inside a knot, starting and ending with its smallest id."""
    place: dict[str, int] = {}
    path: list[str] = []
    here = min(knot)
    while here not in place:
        place[here] = len(path)
        path.append(here)
        here = next(needed for needed in needs[here] if needed in knot)
    cycle = path[place[here] :]
    start = cycle.index(min(cycle))
    return [*cycle[start:], *cycle[:start], cycle[start]]


def _knots(needs: Mapping[str, list[str]]) -> Iterator[set[str]]:
    """Strongly connected sets of more than one task, or of one that needs itself (Tarjan 1972, without recursion)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    stacked: set[str] = set()
    for root in needs:
        if root in number:
            continue
        work: list[tuple[str, Iterator[str]]] = []
        _enter(root, number, lowest, stack, stacked)
        work.append((root, iter(needs[root])))
        while work:
            here, rest = work[-1]
            for needed in rest:
                if needed not in needs:
                    continue
                if needed not in number:
                    _enter(needed, number, lowest, stack, stacked)
                    work.append((needed, iter(needs[needed])))
                    break
                if needed in stacked:
                    lowest[here] = min(lowest[here], number[needed])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[here])
                if lowest[here] == number[here]:
                    knot = _leave(here, stack, stacked)
                    if len(knot) > 1 or here in needs[here]:
                        yield knot


def _enter(task_id: str, number: dict[str, int], lowest: dict[str, int], stack: list[str], stacked: set[str]) -> None:
    number[task_id] = lowest[task_id] = len(number)
    stack.append(task_id)
    stacked.add(task_id)


def _leave(root: str, stack: list[str], stacked: set[str]) -> set[str]:
    knot: set[str] = set()
    while root not in knot:
        member = stack.pop()
        stacked.discard(member)
        knot.add(member)
    return knot

"""The verbs that read and write the spool: tasks list, show, check, add.

Owns one invariant: a person's file is never touched; ``add`` creates a new one or fails. What is shown comes from the
ledger, what is checked from the files as they are now.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.api.verb import Reply, Verb, operand, option
from coordinator.api.view import (
    BAD,
    DIM,
    GOOD,
    STRONG,
    WARN,
    Line,
    block,
    cut,
    facts,
    line,
    local_time,
    pad,
    plural,
    span,
    wrap,
)
from coordinator.api.wire import problem_to_json
from coordinator.domain.errors import BadInput, UnknownTask
from coordinator.domain.problem import Problem
from coordinator.domain.task import TASK_ID, TaskState
from coordinator.domain.taskfile import parse
from coordinator.fleet import cards
from coordinator.fleet.spool import Spool
from coordinator.kit import files
from coordinator.kit.bus import Bus

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from coordinator.api.desk import Desk
    from coordinator.domain.task import Task
    from coordinator.fleet.cards import Cards
    from coordinator.policy.spool import SpoolState

STATE_STYLES: Mapping[str, str] = {
    TaskState.BLOCKED: WARN,
    TaskState.CANCELLED: DIM,
    TaskState.COMPLETED: GOOD,
    TaskState.FAILED: BAD,
    TaskState.HELD: WARN,
    TaskState.REJECTED: BAD,
    TaskState.RUNNING: STRONG,
}
_LIST_HEAD = 19
"""Columns before the id."""
_STATES = tuple(sorted(state.value for state in TaskState))


def task_row(desk: Desk, task_id: str) -> sqlite3.Row:
    """Raise ``UnknownTask``, with ids that look like it."""
    rows = desk.rows("task_get", id=task_id)
    if rows:
        return rows[0]
    import difflib

    near = difflib.get_close_matches(task_id, [row["id"] for row in desk.rows("tasks")], n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else "; `coordinator tasks list` shows them all"
    raise UnknownTask(f"there is no task {task_id!r}{hint}")


def task_to_json(row: sqlite3.Row) -> dict[str, Any]:
    """A row of the ledger with the keys that ``--json`` promises."""
    return {
        "id": row["id"],
        "state": row["state"],
        "priority": row["priority"],
        "title": row["title"],
        "role": row["role"],
        "reason": row["reason"],
        "generation": row["generation"],
        "attempts": row["attempts"],
        "file": row["file"],
        "line": row["line"],
        "commit": row["commit_hash"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


# -- list ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ListArguments:
    state: tuple[str, ...] = option("only tasks in this state (may be repeated)", default=(), short="-s")
    limit: int = option("at most this many, 0 for all", default=0, short="-n", metavar="N")


async def list_tasks(desk: Desk, arguments: ListArguments) -> Reply:
    wrong = [state for state in arguments.state if state not in _STATES]
    if wrong:
        expected = ", ".join(_STATES)
        raise BadInput([Problem(file="--state", message=f"no state {state!r}", expected=expected) for state in wrong])
    rows = [task_to_json(row) for row in desk.rows("tasks")]
    if desk.live is None:
        rows += unread(desk, await read_spool(desk))
        rows.sort(key=lambda row: (row["priority"], row["id"]))
    chosen = [row for row in rows if not arguments.state or row["state"] in arguments.state]
    shown = chosen[: arguments.limit] if arguments.limit > 0 else chosen
    return Reply(data={"tasks": shown, "total": len(chosen)})


def unread(desk: Desk, spool: SpoolState) -> list[dict[str, Any]]:
    """Tasks that stand in the spool and that no daemon has read into the ledger yet."""
    known = {row["id"] for row in desk.rows("tasks")}
    return [
        {
            "id": task.id,
            "state": TaskState.PENDING.value,
            "priority": task.priority,
            "title": task.headline,
            "role": task.role,
            "reason": "no daemon has read its file yet",
            "generation": 0,
            "attempts": 0,
            "file": task.file,
            "line": task.line,
            "commit": "",
            "created_at": "",
            "updated_at": "",
        }
        for task in spool.tasks.values()
        if task.id not in known
    ]


def show_list(data: Mapping[str, Any], width: int) -> list[Line]:
    tasks = data["tasks"]
    if not tasks:
        return [line("no tasks; drop a TOML file into tasks/ or use `coordinator tasks add`")]
    room = min(max(len(task["id"]) for task in tasks), width - _LIST_HEAD - 24)
    lines = [line(span(f"{'STATE':<10} {'PRIO':>6}  {pad('ID', room)}  TITLE", DIM))]
    for task in tasks:
        lines += _list_row(task, room, width)
    if len(tasks) < data["total"]:
        lines.append(line(span(f"… and {data['total'] - len(tasks)} more", DIM)))
    return lines


def _list_row(task: Mapping[str, Any], room: int, width: int) -> list[Line]:
    """An id is never cut, it would be of no use: a long one pushes the title to the next line."""
    head = (span(f"{task['state']:<10}", STATE_STYLES.get(task["state"], "")), span(f" {task['priority']:>6}  "))
    title = "" if task["title"] == task["id"] else task["title"]
    if len(task["id"]) <= room:
        rest = width - _LIST_HEAD - room - 2
        return [(*head, span(f"{pad(task['id'], room)}  {cut(title, rest)}".rstrip()))]
    (_, *first), *more = wrap(task["id"], width, indent=_LIST_HEAD, first=" " * _LIST_HEAD)
    below = [line(span(" " * (_LIST_HEAD + 2) + cut(title, width - _LIST_HEAD - 2), DIM))] if title else []
    return [(*head, *first), *more, *below]


# -- show ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArguments:
    task: str = operand("id of a task", metavar="ID")


async def show_task(desk: Desk, arguments: TaskArguments) -> Reply:
    row = task_row(desk, arguments.task)
    definition = json.loads(row["definition"])
    return Reply(data={**task_to_json(row), "definition": definition, "feedback": row["feedback"]})


def show_one(data: Mapping[str, Any], width: int) -> list[Line]:
    definition = data["definition"]
    pairs = [("state", f"{data['state']}: {data['reason']}" if data["reason"] else data["state"])]
    pairs += [("written in", f"{data['file']}:{data['line']}"), ("priority", str(data["priority"]))]
    for key in ("role", "model", "depends_on", "paths", "accept", "labels", "schedule", "timeout_s", "max_attempts"):
        value = definition.get(key)
        if value:
            pairs.append((key, ", ".join(value) if isinstance(value, list) else str(value)))
    pairs += [("attempts", str(data["attempts"])), ("updated", local_time(data["updated_at"]))]
    if data["commit"]:
        pairs.append(("landed as", data["commit"]))
    head = wrap(f"{data['id']}  {data['title']}", width, style=STRONG)
    lines = [*head, *facts(pairs, width, label=14), line(), *block(definition["prompt"].strip(), width)]
    if data["feedback"]:
        lines += [line(), line(span("For the next attempt:", STRONG)), *block(data["feedback"].strip()[:4000], width)]
    return lines


# -- check ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckArguments:
    file: tuple[str, ...] = operand("task files; none: the whole spool", default=(), metavar="FILE", path=True)


def _without_agents(desk: Desk, tasks: Sequence[Task], found: Cards) -> dict[str, str]:
    """Tasks whose role nobody could play here: no card of that name, or its program is missing."""
    roles = {task.id: task.role or desk.settings.fleet.default_role for task in tasks}
    obstacles = {role: found.obstacle(role) for role in set(roles.values())}
    return {task: obstacles[role] for task, role in roles.items() if obstacles[role]}


async def check_tasks(desk: Desk, arguments: CheckArguments) -> Reply:
    if arguments.file:
        problems, tasks = _check_files(desk, arguments.file)
        blocked: Mapping[str, str] = {}
        count = len(arguments.file)
    else:
        state = await read_spool(desk)
        problems, tasks, blocked, count = list(state.problems), list(state.tasks.values()), state.blocked, state.files
    found = cards.load(desk.root / desk.settings.paths.agents)
    problems += found.problems
    blocked = {**_without_agents(desk, tasks, found), **blocked}
    data = {
        "files": count,
        "tasks": len(tasks),
        "blocked": dict(sorted(blocked.items())),
        "problems": [problem_to_json(problem) for problem in sorted(problems)],
    }
    return Reply(data=data, exit_code=1 if problems else 0)


async def read_spool(desk: Desk) -> SpoolState:
    """The spool as its files stand now."""
    folder = desk.root / desk.settings.paths.tasks
    spool = Spool(folder, desk.root, desk.settings.fleet, Bus(desk.clock), desk.clock, lambda _: None)
    return await spool.read()


def _check_files(desk: Desk, names: tuple[str, ...]) -> tuple[list[Problem], list[Task]]:
    problems: list[Problem] = []
    tasks: list[Task] = []
    for name in names:
        path = Path(name)
        shown = files.shown_in(path.absolute(), desk.root)
        text = files.read_text(path)
        if isinstance(text, str):
            parsed = parse(text, shown)
            problems += parsed.problems
            tasks += parsed.tasks
        else:
            problems.append(Problem(file=shown, line=text.line, message=text.reason, expected=text.expected))
    return problems, tasks


def show_check(data: Mapping[str, Any], width: int) -> list[Line]:
    lines = show_problems(data["problems"], width)
    for task, cause in data["blocked"].items():
        lines += wrap(f"{task} is blocked: {cause}", width, indent=4, style=WARN)
    counted = f"{plural(data['tasks'], 'good task')} in {plural(data['files'], 'file')}"
    if data["problems"]:
        return [*lines, line(f"{counted}, ", span(plural(len(data["problems"]), "problem"), BAD))]
    return [*lines, line(f"{counted}, ", span("no problems", GOOD))]


def show_problems(problems: list[Mapping[str, Any]], width: int) -> list[Line]:
    """Each as ``file:line: key: message`` with what was expected on a line of its own."""
    lines: list[Line] = []
    for problem in problems:
        place = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
        key = f"{problem['key']}: " if problem["key"] else ""
        lines += wrap(f"{place}: {key}{problem['message']}", width, indent=4, style=BAD)
        if problem["expected"]:
            lines += wrap(f"    expected: {problem['expected']}", width, indent=14)
    return lines


# -- add -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AddArguments:
    prompt: str = operand("what to do; - reads it from standard input", metavar="PROMPT")
    id: str = option("id of the task; default: made from the title", default="", metavar="ID")
    title: str = option("one line for people", default="", short="-t", metavar="TEXT")
    role: str = option("which agents may take it", default="", short="-r", metavar="ROLE")
    priority: int = option("1 is the most urgent", default=10, short="-p", metavar="N")
    depends_on: tuple[str, ...] = option("task that must land first (may be repeated)", default=(), metavar="ID")
    accept: tuple[str, ...] = option("command that must exit 0 on the merged tree", default=(), metavar="COMMAND")
    paths: tuple[str, ...] = option("glob it may touch (may be repeated)", default=(), name="path", metavar="GLOB")
    labels: tuple[str, ...] = option("a word of yours (may be repeated)", default=(), name="label", metavar="WORD")
    timeout: str = option("time for one attempt, such as 90s or 10m", default="", metavar="TIME")
    max_attempts: int | None = option("attempts that may fail", default=None, metavar="N")
    model: str = option("model for agents that use one", default="", metavar="NAME")


async def add_task(desk: Desk, arguments: AddArguments) -> Reply:
    task_id = arguments.id or new_id(arguments.title or arguments.prompt)
    values: dict[str, Any] = {"id": task_id}
    for key in ("title", "prompt", "priority", "role", "depends_on", "accept", "paths", "labels"):
        values[key] = getattr(arguments, key)
    values |= {"timeout": arguments.timeout, "max_attempts": arguments.max_attempts, "model": arguments.model}
    text = files.task_text(values)
    name = f"{desk.settings.paths.tasks}/{task_id}.toml"
    parsed = parse(text, "tasks add")
    if parsed.problems:
        raise BadInput(
            [
                Problem(file=f"--{one.key or 'prompt'}", message=one.message, expected=one.expected)
                for one in map(_unplaced, parsed.problems)
            ]
        )
    if desk.rows("task_get", id=task_id) or task_id in (await read_spool(desk)).tasks:
        raise BadInput([Problem(file="--id", message=f"a task {task_id!r} exists already", expected="a new id")])
    try:
        files.write_new(desk.root / name, text)
    except FileExistsError:
        raise BadInput([Problem(file=name, message="exists already", expected="a new id")]) from None
    role = arguments.role or desk.settings.fleet.default_role
    obstacle = cards.load(desk.root / desk.settings.paths.agents).obstacle(role)
    return Reply(data={"id": task_id, "file": name, "obstacle": obstacle, "daemon": desk.live is not None})


def _unplaced(problem: Problem) -> Problem:
    """Without the position in a text that the caller never saw."""
    key = problem.key.rpartition(".")[2]
    return Problem(file="", key=re.sub(r"\[\d+\]$", "", key), message=problem.message, expected=problem.expected)


def new_id(text: str) -> str:
    """A readable id that is not taken: the first words and six random hex digits."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    task_id = f"{words or 'task'}-{secrets.token_hex(3)}"
    return task_id if TASK_ID.fullmatch(task_id) else f"task-{secrets.token_hex(3)}"


def show_added(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = wrap(f"added {data['id']} ({data['file']})", width, indent=6, style=GOOD)
    if data["obstacle"]:
        lines += wrap(f"It stays blocked for now: {data['obstacle']}.", width, style=WARN)
    elif not data["daemon"]:
        lines += wrap("No daemon is running: `coordinator run` starts one.", width, style=DIM)
    return lines


VERBS = (
    Verb(
        name="tasks add",
        arguments=AddArguments,
        call=add_task,
        doc="Write a new task file into the spool.",
        example="coordinator tasks add -t 'Fix the parser' --accept 'pytest -q tests/test_parser.py' -",
        show=show_added,
    ),
    Verb(
        name="tasks check",
        arguments=CheckArguments,
        call=check_tasks,
        doc="Report every problem of every task file and role card.",
        show=show_check,
    ),
    Verb(
        name="tasks list", arguments=ListArguments, call=list_tasks, doc="List tasks and their states.", show=show_list
    ),
    Verb(name="tasks show", arguments=TaskArguments, call=show_task, doc="Show one task in full.", show=show_one),
)

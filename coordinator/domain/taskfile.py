"""A file of the spool, read: its good tasks, and everything that is wrong with the others.

Owns one invariant: a task is accepted whole or not at all, and a bad one takes no good neighbour with it. What only the
whole spool can tell (duplicates, cycles, missing dependencies) is ``policy.spool``'s.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.cron import cron_fault
from coordinator.domain.problem import Problem
from coordinator.domain.task import TASK_ID, Task
from coordinator.domain.toml_position import TomlDocument, read_document
from coordinator.domain.toml_table import TomlTable

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_TIME_KEYS: Final = frozenset({"claimed_by", "failure_reason", "status"})
"""Keys that older tools write back into task files; accepted, and they decide nothing."""

TASK_KEYS: Final = RUN_TIME_KEYS | {
    "accept",
    "budget_usd",
    "depends_on",
    "env",
    "id",
    "labels",
    "max_attempts",
    "model",
    "paths",
    "priority",
    "prompt",
    "role",
    "schedule",
    "timeout",
    "title",
}

LARGEST_PRIORITY: Final = 999_999
"""Ready entries sort by six digits."""

LONGEST_TIMEOUT_S: Final = 7 * 24 * 3600.0
GLOB: Final = re.compile(r"(?!/)(?!(?:.*/)?\.\.(?:/|$))[^\\]+")
"""A path pattern relative to the repository that cannot lead out of it."""

_ID_RULE: Final = "lower-case letters, digits and . _ -, at most 100, the first a letter or digit"
_LARGEST_TEXT: Final = 10_000_000
_ABOVE: Final = "the line [[tasks]] above the keys of each task"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFile:
    """``readable`` is false when the text is no TOML at all: then nothing is known about its tasks.

    ``rejected`` are ids (well-formed ones) of tasks that were not accepted, with the cause. ``needs_lines`` are the
    lines of ``depends_on`` by task id. ``tasks`` may hold an id twice.
    """

    file: str
    needs_lines: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    readable: bool = True
    rejected: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()


def parse(text: str, file: str) -> ParsedFile:
    """Read one task file. ``file`` is how tasks and problems name it. Never raises."""
    document = read_document(text, file)
    if isinstance(document, Problem):
        return ParsedFile(file=file, problems=(document,), readable=False)
    problems: list[Problem] = []
    tables = _tables(document, problems)
    headers = document.header_lines("tasks", len(tables))
    tasks: list[Task] = []
    rejected: dict[str, str] = {}
    needs_lines: dict[str, int] = {}
    for index, data in enumerate(tables):
        found: list[Problem] = []
        table = TomlTable(document, data, found, at=("tasks", index))
        task = _task(table, file, headers[index])
        if found:
            if TASK_ID.fullmatch(task.id):
                rejected.setdefault(task.id, str(found[0]))
            problems.extend(found)
            continue
        if task.depends_on:
            needs_lines.setdefault(task.id, table.line("depends_on"))
        tasks.append(replace(task, digest=digest_of(task)))
    return ParsedFile(
        file=file, needs_lines=needs_lines, problems=tuple(problems), rejected=rejected, tasks=tuple(tasks)
    )


def digest_of(task: Task) -> str:
    """Identifies what is asked for, wherever it is written."""
    definition = [
        [task.id, task.prompt, task.title, task.role, task.model, task.schedule],
        [task.priority, task.timeout_s, task.max_attempts, task.budget_usd],
        [task.accept, task.depends_on, task.labels, task.paths, task.env],
    ]
    return hashlib.sha256(json.dumps(definition, ensure_ascii=True).encode()).hexdigest()


def _tables(document: TomlDocument, problems: list[Problem]) -> list[Mapping[str, Any]]:
    """The ``[[tasks]]`` of a document. Anything else at the top is reported and takes no task with it."""
    top = TomlTable(document, document.data, problems)
    strays = [key for key in document.data if key in TASK_KEYS]
    if strays:
        top.wrong(strays[0], "stands outside [[tasks]]", _ABOVE)
    top.check_keys({"tasks"}, ignored=TASK_KEYS)
    value = document.data.get("tasks")
    if value is None:
        if document.data and not problems:
            problems.append(Problem(file=document.file, message="no [[tasks]]", expected=_ABOVE))
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        top.wrong("tasks", "is no array of tables", "[[tasks]] in double brackets")
        return []
    return value


def _task(table: TomlTable, file: str, line: int) -> Task:
    """The task of one table; good for use only when the table has no problems."""
    table.check_keys(TASK_KEYS)
    limits: dict[str, Any] = {}
    if "budget_usd" in table:
        limits["budget_usd"] = table.number("budget_usd", 0.0, 0.0, 1e6)
    if "max_attempts" in table:
        limits["max_attempts"] = table.integer("max_attempts", 1, 1, 100)
    if "timeout" in table:
        limits["timeout_s"] = table.seconds("timeout", 1.0, 0.001, LONGEST_TIMEOUT_S)
    return Task(
        id=_id(table),
        prompt=_prompt(table),
        accept=table.texts("accept", expected='a shell command line, e.g. "pytest -q"', lines=True, longest=20_000),
        depends_on=tuple(dict.fromkeys(table.texts("depends_on", expected="a task's id", pattern=TASK_ID))),
        env=table.variables("env"),
        file=file,
        labels=table.texts("labels", expected="a short text", longest=100),
        line=line,
        model=table.text("model", expected="a model's name"),
        paths=table.texts("paths", expected='a glob inside the repository, e.g. "src/**"', longest=4096, pattern=GLOB),
        priority=table.integer("priority", 1, 0, LARGEST_PRIORITY),
        role=table.text("role", expected="the name of a role card", pattern=TASK_ID),
        schedule=_schedule(table),
        title=table.text("title", expected="one line of at most 200 characters"),
        **limits,
    )


def _id(table: TomlTable) -> str:
    if "id" not in table:
        table.wrong("id", "is missing", _ID_RULE)
    return table.text("id", expected=_ID_RULE, pattern=TASK_ID)


def _prompt(table: TomlTable) -> str:
    if "prompt" not in table:
        table.wrong("prompt", "is missing", "what the agent shall do")
        return ""
    prompt = table.text("prompt", "?", expected="what the agent shall do", lines=True, longest=_LARGEST_TEXT)
    if not prompt.strip():
        table.wrong("prompt", "is empty", "what the agent shall do")
    return prompt


def _schedule(table: TomlTable) -> str:
    schedule = table.text("schedule", expected='five cron fields, e.g. "30 4 * * mon"').strip()
    fault = cron_fault(schedule) if "schedule" in table else ""
    if fault and isinstance(table.data["schedule"], str):
        table.wrong("schedule", fault, 'five cron fields, e.g. "30 4 * * mon"')
    return " ".join(schedule.split())

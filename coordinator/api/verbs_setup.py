"""The verbs for a new place: init and doctor.

Owns one invariant: neither changes a file that exists, and doctor names every missing or unsuitable thing together with
its remedy instead of stopping at the first. Nothing here is needed to run: all configuration is optional.
"""

from __future__ import annotations

import ast
import inspect as source_of
import itertools
import sys
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from coordinator.api.verb import NoArguments, Reach, Reply, Verb
from coordinator.api.view import BAD, DIM, GOOD, STRONG, WARN, Line, line, span, wrap
from coordinator.domain.settings import NotifyHook, Settings
from coordinator.kit import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from coordinator.api.desk import Desk

_README = """\
# The spool

A TOML file dropped into this folder is work for the fleet. Any number of files, any number of tasks in each; edit a
file and the task changes, delete it and the task is cancelled. Files below `auto/` are written by discovery.

```toml
[[tasks]]
id = "fix-the-parser"                     # a-z 0-9 . _ -
prompt = "Make the parser accept empty input."
# Everything else is optional:
title = "Accept empty input"
priority = 10                             # 1 is the most urgent
role = "command"                          # which agents may take it: agents/<role>.toml
depends_on = ["another-task"]
accept = ["pytest -q tests/test_parser.py"] # must exit 0 on the merged tree
paths = ["src/**", "tests/**"]            # what it may touch
timeout = "10m"
max_attempts = 3
```

`coordinator tasks check` reports every problem; `coordinator status` shows where everything stands.
"""


async def init(desk: Desk, _: NoArguments) -> Reply:
    """Write what is missing: a settings file with every default commented out, and the spool with its README."""
    written, kept = [], []
    sheets = {"coordinator.toml": settings_sheet(), f"{desk.settings.paths.tasks}/README.md": _README}
    for name, text in sheets.items():
        try:
            files.write_new(desk.root / name, text)
            written.append(name)
        except FileExistsError:
            kept.append(name)
    return Reply(data={"repository": str(desk.root), "written": written, "kept": kept})


_HOOKS = "#   [[notify]], one for each that is to be told; exactly one of command, url and url_env:"


def settings_sheet() -> str:
    """All settings with their defaults and docstrings, every line a comment."""
    parts = ["# Settings of the coordinator. Everything is optional; the values below are the defaults.\n"]
    for group in fields(Settings):
        made: Any = group.default_factory() if callable(group.default_factory) else None
        if is_dataclass(made):
            parts.append("\n".join([f"# [{group.name}]", *_group_lines(made)]) + "\n")
    parts.append(
        "\n".join(
            [
                "#   [[notify]], one for each that is to be told; exactly one of command, url and url_env:",
                *_hook_lines(),
            ]
        )
        + "\n"
    )
    return "\n".join(parts)


def _group_lines(group: Any) -> Iterator[str]:
    notes = field_notes(type(group))
    for item in fields(group):
        yield from (f"#   {text}" for text in notes.get(item.name, "").splitlines())
        yield f"# {item.name} = {_toml(getattr(group, item.name))}"


def _hook_lines() -> Iterator[str]:
    """An example, indented like a note: there is no hook by default."""
    for text in _group_lines(NotifyHook(command=("notify-send", "coordinator"))):
        yield "#   " + text.removeprefix("# ")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }" if value else "{}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def field_notes(kind: type[Any]) -> dict[str, str]:
    """The docstring below each field, from the source: the one place where a setting is described."""
    tree = ast.parse(source_of.getsource(sys.modules[kind.__module__]))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    notes = {}
    for field_node, note in itertools.pairwise(body):
        if not isinstance(field_node, ast.AnnAssign) or not isinstance(field_node.target, ast.Name):
            continue
        if isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
            notes[field_node.target.id] = source_of.cleandoc(str(note.value.value))
    return notes


def show_init(data: Mapping[str, Any], width: int) -> list[Line]:
    lines = [line(span("wrote  ", GOOD), name) for name in data["written"]]
    lines += [line(span("kept   ", DIM), f"{name} (it is yours already)") for name in data["kept"]]
    lines += [line(), line(span("Next:", STRONG))]
    for step in ("coordinator doctor", "coordinator tasks add 'what to do'", "coordinator run --self-improve"):
        lines += wrap(step, width, indent=4, first="  ")
    return lines


# -- doctor --------------------------------------------------------------------------------------------------------


async def doctor(desk: Desk, _: NoArguments) -> Reply:
    from coordinator.api import diagnosis  # it looks at everything; nothing else needs it

    found = await diagnosis.examine(desk)
    rows = [{"check": one.check, "status": one.status, "detail": one.detail, "remedy": one.remedy} for one in found]
    failed = any(row["status"] == "fail" for row in rows)
    return Reply(data={"python": sys.executable, "checks": rows, "ok": not failed}, exit_code=1 if failed else 0)


def show_doctor(data: Mapping[str, Any], width: int) -> list[Line]:
    marks = {"ok": ("ok    ", GOOD), "warn": ("note  ", WARN), "fail": ("FAIL  ", BAD)}
    lines: list[Line] = []
    for row in data["checks"]:
        mark, style = marks[row["status"]]
        head, *rest = wrap(f"{row['check']}: {row['detail']}", width, indent=6, first=mark)
        lines += [(span(mark, style), *head[1:]), *rest]
        if row["remedy"]:
            lines += wrap(f"-> {row['remedy']}", width, indent=9, first="      ", style=STRONG)
    count = sum(row["status"] == "fail" for row in data["checks"])
    untested = any(row["check"] == "tests" and row["status"] == "warn" for row in data["checks"])
    if not data["ok"]:
        verdict = span(f"{count} to mend.", BAD)
    elif untested:
        verdict = span("It can run, but the project's tests cannot: see above.", WARN)
    else:
        verdict = span("Everything that is needed is here.", GOOD)
    return [*lines, line(), line(verdict)]


VERBS = (
    Verb(
        name="doctor",
        arguments=NoArguments,
        call=doctor,
        doc="Check this machine and repository; name what is missing and its remedy.",
        reach=Reach.HERE,
        show=show_doctor,
    ),
    Verb(
        name="init",
        arguments=NoArguments,
        call=init,
        doc="Write a settings file and the spool's README where they are missing.",
        reach=Reach.HERE,
        show=show_init,
    ),
)

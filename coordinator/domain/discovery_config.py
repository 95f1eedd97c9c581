"""``[discovery]`` as a person writes it, turned into ``DiscoverySettings``.

Owns one invariant: a tool that is named is one that a scan knows. How each is used is its adapter's (``checks.adapters``).
"""

from __future__ import annotations

import re
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from coordinator.domain.cron import cron_fault
from coordinator.domain.finding import Severity
from coordinator.domain.settings import DiscoverySettings, DismissedSettings, ToolSettings
from coordinator.domain.task import TASK_ID
from coordinator.domain.taskfile import LARGEST_PRIORITY
from coordinator.domain.toml_table import ENV_NAME

if TYPE_CHECKING:
    from coordinator.domain.toml_table import TomlTable

DISCOVERY_TOOLS: Final = (
    "ruff",
    "ruff-format",
    "pip-audit",
    "npm-audit",
    "cargo-audit",
    "sarif",
    "sarif-file",
    "mypy",
    "pyright",
    "vulture",
    "deptry",
    "eslint",
    "cargo-check",
    "cargo-clippy",
    "pytest",
)
"""Tools that a scan knows (``checks.adapters``)."""

_CRON: Final = 'five cron fields, e.g. "30 4 * * mon"'
_DAY: Final = 'a day in quotes, e.g. "2027-01-31"'
_DAY_S: Final = 24 * 3600.0
_ENV_RULE: Final = "the name of an environment variable"
_LARGEST_BYTES: Final = 1 << 50
_ONE_TOOL: Final = "one of " + ", ".join(DISCOVERY_TOOLS)
_ROLE_OR_NONE: Final = re.compile(rf"(?:{TASK_ID.pattern})?")
_RULE: Final = re.compile(r"[A-Z]{1,5}[0-9]{0,4}")
_TOLD: Final = MappingProxyType(
    {"reason": "why it is to stay, in a few words", "rule": "a rule or an advisory, e.g. F401 or CVE-2024-1"}
)


def discovery_from(table: TomlTable) -> DiscoverySettings:
    usual = DiscoverySettings()
    table.check_keys(DiscoverySettings.__dataclass_fields__)
    severities = [severity.name.lower() for severity in Severity]
    return DiscoverySettings(
        dismissed=tuple(map(_dismissed, table.tables("dismissed"))),
        extra_tools=_tool_names(table, "extra_tools"),
        interval_s=table.seconds("interval_s", usual.interval_s, 1.0, 30 * _DAY_S),
        max_open=table.integer("max_open", usual.max_open, 0, 10_000),
        max_open_per_tool=table.integer("max_open_per_tool", usual.max_open_per_tool, 0, 10_000),
        model_severity=table.choice("model_severity", usual.model_severity, severities),
        priority=table.integer("priority", usual.priority, 0, LARGEST_PRIORITY),
        role=table.text("role", usual.role, expected="the name of a role card", pattern=_ROLE_OR_NONE),
        select=table.texts("select", usual.select, expected="a ruff rule or its prefix, e.g. F401", pattern=_RULE),
        tool=_tool_tables(table),
        tools=_tool_names(table, "tools"),
        without_tools=_tool_names(table, "without_tools"),
    )


def _dismissed(table: TomlTable) -> DismissedSettings:
    table.check_keys(DismissedSettings.__dataclass_fields__)
    told = {key: table.text(key, expected=expected).strip() for key, expected in _TOLD.items()}
    for key, expected in _TOLD.items():
        if not told[key]:
            table.wrong(key, "is missing", expected)
    tool, until = table.text("tool", expected=_ONE_TOOL), table.text("until", expected=_DAY)
    if tool and tool not in DISCOVERY_TOOLS:
        table.wrong("tool", f'"{tool}" is not known', _ONE_TOOL)
    if until and not _is_day(until):
        table.wrong("until", f'"{until}" is no day', _DAY)
    return DismissedSettings(**told, path=table.text("path", expected="a glob of files"), tool=tool, until=until)


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _tool_names(table: TomlTable, key: str) -> tuple[str, ...]:
    names = table.texts(key, (), expected=_ONE_TOOL)
    for index, name in enumerate(names):
        if name not in DISCOVERY_TOOLS:
            table.wrong(key, f'"{name}" is not known', _ONE_TOOL, inside=(index,))
    return names


def _tool_tables(table: TomlTable) -> tuple[ToolSettings, ...]:
    found: dict[str, ToolSettings] = {}
    for one in table.tables("tool"):
        name = one.text("name", expected=_ONE_TOOL)
        if name not in DISCOVERY_TOOLS:
            one.wrong("name", f'"{name}" is not known' if "name" in one else "is missing", _ONE_TOOL)
        elif name in found:
            one.wrong("name", f'there are two of "{name}"')
        else:
            found[name] = _tool(name, one)
    return tuple(found.values())


def _tool(name: str, table: TomlTable) -> ToolSettings:
    usual = ToolSettings(name=name)
    table.check_keys(ToolSettings.__dataclass_fields__)
    cron = table.text("cron", usual.cron, expected=_CRON).strip()
    fault = cron_fault(cron) if cron else ""
    if fault:
        table.wrong("cron", fault, _CRON)
    return ToolSettings(
        arguments=table.texts("arguments", usual.arguments, expected="an argument of the tool's command line"),
        commands=_only_of("sarif", "commands", name, table, "a shell line that prints SARIF"),
        cron=" ".join(cron.split()),
        env=table.texts("env", usual.env, expected=_ENV_RULE, pattern=ENV_NAME),
        files=_only_of("sarif-file", "files", name, table, "a SARIF file"),
        inside=table.flag("inside", usual.inside),
        interval_s=table.seconds("interval_s", 0.0, 1.0, 30 * _DAY_S) if "interval_s" in table else None,
        max_open=table.integer("max_open", 0, 0, 10_000) if "max_open" in table else None,
        memory_bytes=table.size("memory_bytes", usual.memory_bytes, 0, _LARGEST_BYTES),
        name=name,
        output_bytes=table.size("output_bytes", usual.output_bytes, 1024, _LARGEST_BYTES),
        path=table.text("path", usual.path, expected="the path of a program"),
        timeout_s=table.seconds("timeout_s", usual.timeout_s, 0.1, _DAY_S),
    )


def _only_of(tool: str, key: str, name: str, table: TomlTable, expected: str) -> tuple[str, ...]:
    """Texts of a key that one tool alone has a use for."""
    found = table.texts(key, (), expected=expected)
    if found and name != tool:
        table.wrong(key, f"is for {tool} alone, not for {name}")
    return found

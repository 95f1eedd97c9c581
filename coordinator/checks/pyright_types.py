"""``pyright`` as a discovery tool: errors and warnings of types, as the project itself has it configured.

Owns one invariant: a file whose imports are not installed here, or that cannot be parsed, is known not to have been looked at;
a run that looked at no file at all is none.
"""

from __future__ import annotations

import asyncio
import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, broken, text_of
from coordinator.checks.failing_tests import has_module
from coordinator.checks.tool import exit_words
from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles

_LINK: Final = "https://microsoft.github.io/pyright/#/configuration?id={}"
_MISSING: Final = re.compile(r'^Import "([^".]+)')
_NOT_HERE: Final = frozenset({"reportMissingImports", "reportMissingModuleSource"})
_SEVERITIES: Final = MappingProxyType({"error": Severity.MEDIUM, "warning": Severity.LOW})
_SYNTAX: Final = "syntax"


class Pyright(FindingTool):
    name = "pyright"
    program = "pyright"
    reads = ("*.py", "*.pyi", "pyproject.toml", "pyrightconfig.json")
    remedy = "pip install pyright into the project's environment"
    stale_after_s: float | None = None
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any("*.py", "*.pyi") else "there is no Python file"

    async def scan(self, order: ScanOrder) -> ScanReport:
        words = ["--outputjson"]
        if order.surroundings.first:
            words += ["--pythonpath", str(order.surroundings.python)]
        printed = await order.run(words, env=order.environment(PYRIGHT_PYTHON_IGNORE_WARNINGS="1"))
        return await asyncio.to_thread(understood_pyright, order, printed)


def understood_pyright(order: ScanOrder, printed: Printed) -> ScanReport:
    """Exit code 1 is that of errors alone, 2 and more that of faults of its own and of its configuration."""
    ran, name = printed.ran, Pyright.name
    if ran.problem or ran.code not in {0, 1}:
        return broken(name, f"it {exit_words(ran)}", ran)
    try:
        data = json.loads(printed.out.read_text(encoding="utf-8"))
        items = [item for item in data["generalDiagnostics"] if item["severity"] in _SEVERITIES]
        analysed, errors = int(data["summary"]["filesAnalyzed"]), sum(item["severity"] == "error" for item in items)
        lacking = {order.relative(text_of(item["file"])) for item in items if _lacks(order.tree, item)}
        found = identified(_findings(order, [item for item in items if not _lacks(order.tree, item)]))
    except UNREADABLE as error:
        return broken(name, f"its report could not be read: {type(error).__name__}: {error}", ran)
    if not analysed:
        return broken(name, "it looked at no file", ran)
    if bool(errors) is not (ran.code == 1):
        return broken(name, f"it exited with {ran.code} and named {errors} errors", ran)
    unread = lacking | {one.place.path for one in found if one.rule == _SYNTAX}
    return ScanReport(
        findings=found, status=ScanStatus.SCANNED, tool=name, took_s=ran.took_s, unread=tuple(sorted(unread))
    )


def _lacks(tree: Path, item: Mapping[str, Any]) -> bool:
    """An import of what is not installed here: the environment's fault."""
    missing = _MISSING.search(text_of(item["message"])) if item.get("rule") in _NOT_HERE else None
    return missing is not None and not has_module(tree, missing.group(1))


def _findings(order: ScanOrder, items: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    lines = SourceLines(order.tree)
    for item in items:
        rule, start = text_of(item.get("rule"), default=_SYNTAX), item["range"]["start"]
        place = Place(
            path=order.relative(text_of(item["file"])), line=int(start["line"]) + 1, column=int(start["character"]) + 1
        )
        yield Finding(
            category=_SYNTAX if rule == _SYNTAX else "typing",
            evidence=lines.at(place.path, place.line),
            links=(_LINK.format(rule),) if rule != _SYNTAX else (),
            message=" ".join(text_of(item["message"]).split()),
            places=(place,),
            rule=rule,
            severity=Severity.HIGH if rule == _SYNTAX else _SEVERITIES[item["severity"]],
            tool=Pyright.name,
        )

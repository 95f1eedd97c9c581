"""``deptry`` as a discovery tool: requirements that nothing imports, and imports that no requirement covers.

Owns one invariant: where a package is not installed, so that deptry guesses which modules it has, nothing is told that the guess
alone may have made up, and nothing is taken for mended.
"""

from __future__ import annotations

import asyncio
import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, broken, text_of
from coordinator.checks.tool import exit_words, last_line
from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from coordinator.checks.adapter import ScanOrder, TreeFiles
    from coordinator.checks.tool import ToolRun

_GUESSED: Final = re.compile(r"Assuming the corresponding module name of package '([^']+)'")
_LINK: Final = "https://deptry.com/rules-violations/"
_MISSING, _UNUSED = "DEP001", "DEP002"
_SEVERITIES: Final = MappingProxyType({_MISSING: Severity.MEDIUM})
_SHOWN: Final = 5


class Deptry(FindingTool):
    name = "deptry"
    program = "deptry"
    reads = ("*.py", "*.ipynb", "pyproject.toml", "requirements*.txt", "requirements*.in", "poetry.lock", "uv.lock")
    remedy = "pip install deptry into the project's environment"
    stale_after_s: float | None = None
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        if not files.any("*.py", "*.ipynb"):
            return "there is no Python file"
        return "" if files.any("pyproject.toml", "requirements*.txt") else "no file of it asks for Python packages"

    async def scan(self, order: ScanOrder) -> ScanReport:
        report = order.scratch / "report.json"
        printed = await order.run([".", "--no-ansi", "--json-output", str(report)])
        return await asyncio.to_thread(understood_deptry, order, printed.ran, report)


def understood_deptry(order: ScanOrder, ran: ToolRun, report: Path) -> ScanReport:
    """What it says in words, guesses among them, is on stderr."""
    name = Deptry.name
    if ran.problem or ran.code not in {0, 1}:
        return broken(name, f"it {exit_words(ran)}", ran)
    try:
        items = json.loads(report.read_text(encoding="utf-8"))
        guessed = set(_GUESSED.findall(ran.output))
        doubtful = {text_of(item["module"]) for item in items if item["error"]["code"] == _UNUSED} & guessed
        sure = [item for item in items if not (doubtful and _is_doubtful(item, doubtful))]
        found = identified(_findings(order, sure))
    except UNREADABLE as error:
        said = f"{type(error).__name__}: {error}; it said {last_line(ran.output)}"
        return broken(name, f"its report could not be read: {said}", ran)
    if bool(items) is not (ran.code == 1):
        return broken(name, f"it exited with {ran.code} and named {len(items)} things", ran)
    status, reason = ScanStatus.SCANNED, ""
    if doubtful:
        named = ", ".join(sorted(doubtful)[:_SHOWN])
        status, reason = ScanStatus.PARTIAL, f"{named} is not installed for it, so nobody knows which modules it has"
    return ScanReport(findings=found, reason=reason, status=status, tool=name, took_s=ran.took_s)


def _is_doubtful(item: Mapping[str, Any], doubtful: set[str]) -> bool:
    """A package that is not there may have any module, so that it may be used and an import may be its."""
    code = item["error"]["code"]
    return code == _MISSING or (code == _UNUSED and item["module"] in doubtful)


def _findings(order: ScanOrder, items: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    sources = SourceLines(order.tree)
    for item in items:
        where, rule = item["location"], text_of(item["error"]["code"])
        path, line, column = order.relative(text_of(where["file"])), where["line"] or 0, where["column"] or 0
        place = Place(path=path, line=int(line), column=int(column))
        yield Finding(
            category="dependencies",
            evidence=sources.at(place.path, place.line) if place.line else "",
            links=(_LINK,),
            message=text_of(item["error"]["message"]),
            places=(place,),
            rule=rule,
            severity=_SEVERITIES.get(rule, Severity.LOW),
            tool=Deptry.name,
        )

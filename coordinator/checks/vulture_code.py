"""``vulture`` as a discovery tool: code that nothing uses.

Owns one invariant: unless the project says how sure it wants to be, only what vulture is four fifths sure of is told; below
that most of it is used by a framework. Files that it cannot parse are known not to have been looked at.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, broken
from coordinator.checks.tool import exit_words, last_line
from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles

_LEAST_SURE: Final = 80
_LINE: Final = re.compile(r"(?P<path>.+?):(?P<line>\d+): (?P<message>.+) \(\d+% confidence(, \d+ lines?)?\)")
_SKIPPED: Final = re.compile(r"^(?P<path>.+\.pyi?):\d+: ", re.MULTILINE)
_SKIPPED_WHOLE: Final = re.compile(r"^Error: Could not read file (?P<path>.+?) -", re.MULTILINE)
_UNREAD, _USAGE, _FOUND = 1, 2, 3  # vulture's exit codes besides 0


class Vulture(FindingTool):
    name = "vulture"
    program = "vulture"
    reads = ("*.py", "pyproject.toml")
    remedy = "pip install vulture"
    stale_after_s: float | None = None
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any("*.py") else "there is no Python file"

    async def scan(self, order: ScanOrder) -> ScanReport:
        printed = await order.run(await asyncio.to_thread(_words, order.tree))
        return await asyncio.to_thread(understood_vulture, order, printed)


def _words(tree: Path) -> list[str]:
    try:
        tools = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
        own = set(tools["vulture"])
    except UNREADABLE:
        own = set()  # none, or vulture itself will say what is wrong with it
    sure = [] if "min_confidence" in own else ["--min-confidence", str(_LEAST_SURE)]
    return sure if "paths" in own else [*sure, "."]


def understood_vulture(order: ScanOrder, printed: Printed) -> ScanReport:
    """It prints a line for each thing; what it says of files that it could not read goes to stderr."""
    ran, name = printed.ran, Vulture.name
    if ran.problem or ran.code not in {0, _UNREAD, _FOUND}:
        return broken(name, f"it {exit_words(ran)}", ran)
    try:
        lines = printed.out.read_text(encoding="utf-8").splitlines()
        found = identified(_findings(order, filter(str.strip, lines)))
        skipped = [*_SKIPPED.findall(ran.output), *_SKIPPED_WHOLE.findall(ran.output)]
        unread = {order.relative(path) for path in skipped}
    except UNREADABLE as error:
        return broken(name, f"its report could not be read: {type(error).__name__}: {error}", ran)
    if bool(found) is not (ran.code == _FOUND) or (ran.code == _UNREAD and not unread):
        return broken(name, f"it exited with {ran.code} and named {len(found)} things: {last_line(ran.output)}", ran)
    return ScanReport(
        findings=found, status=ScanStatus.SCANNED, tool=name, took_s=ran.took_s, unread=tuple(sorted(unread))
    )


def _findings(order: ScanOrder, lines: Iterable[str]) -> Iterator[Finding]:
    sources = SourceLines(order.tree)
    for line in lines:
        told = _LINE.fullmatch(line)
        if told is None:
            raise ValueError(f"{line!r:.100} is no line of vulture's")
        place = Place(path=order.relative(told["path"]), line=int(told["line"]))
        yield Finding(
            category="dead code",
            evidence=sources.at(place.path, place.line),
            message=told["message"],
            places=(place,),
            rule=re.sub(r"\W+", "-", told["message"].partition("'")[0].strip()).strip("-")[:40] or "unused",
            severity=Severity.LOW,
            tool=Vulture.name,
        )

"""``eslint`` as a discovery tool: faults in JavaScript and TypeScript, by the project's own configuration.

Owns one invariant: without a configuration of the project's own there are no rules and nothing to tell. That configuration is a
program, which eslint runs, so the tool is used only when named. It does not say which of its fixes keep what the code means.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, broken, text_of
from coordinator.checks.tool import last_line
from coordinator.domain.finding import Finding, Fix, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles

_CONFIGURATIONS: Final = ("eslint.config.*", ".eslintrc", ".eslintrc.*")
_ERROR: Final = 2
_LINK: Final = "https://eslint.org/docs/latest/rules/{}"
_SYNTAX: Final = "syntax"


class Eslint(FindingTool):
    name = "eslint"
    program = "eslint"
    reads = ("*.js", "*.cjs", "*.mjs", "*.jsx", "*.ts", "*.cts", "*.mts", "*.tsx", "*.vue", "*.json", *_CONFIGURATIONS)
    remedy = "npm install eslint in the project, with inside = true in its [[discovery.tool]], or globally"
    stale_after_s: float | None = None
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        told = files.any(*_CONFIGURATIONS) or '"eslintConfig"' in files.text("package.json")
        return "" if told else "there is no configuration of eslint's"

    async def scan(self, order: ScanOrder) -> ScanReport:
        printed = await order.run(["--format", "json", "."])
        return await asyncio.to_thread(understood_eslint, order, printed)


def understood_eslint(order: ScanOrder, printed: Printed) -> ScanReport:
    """Exit code 1 is that of errors (warnings alone have 0), 2 that of a configuration that cannot be used."""
    ran, name = printed.ran, Eslint.name
    if ran.problem or ran.code not in {0, 1}:
        lines = [line.strip() for line in ran.output.splitlines() if line.strip() and "Oops" not in line]
        said = next((line for line in lines if "Error" in line or "couldn't" in line), last_line(ran.output))
        return broken(name, f"it exited with {ran.code}: {said}", ran)
    try:
        files = json.loads(printed.out.read_text(encoding="utf-8"))
        errors = sum(message["severity"] == _ERROR for file in files for message in file["messages"])
        found = identified(_findings(order, files))
    except UNREADABLE as error:
        said = f"{type(error).__name__}: {error}; {last_line(ran.output)}"
        return broken(name, f"its report could not be read: {said}", ran)
    if bool(errors) is not (ran.code == 1):
        return broken(name, f"it exited with {ran.code} and named {errors} errors", ran)
    unread = {one.place.path for one in found if one.rule == _SYNTAX}
    return ScanReport(
        findings=found, status=ScanStatus.SCANNED, tool=name, took_s=ran.took_s, unread=tuple(sorted(unread))
    )


def _findings(order: ScanOrder, files: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    sources = SourceLines(order.tree)
    for file in files:
        path = order.relative(text_of(file["filePath"]))
        for message in file["messages"]:
            if message["ruleId"] or message.get(
                "fatal"
            ):  # the others are about eslint's own comments and ignored files
                yield _finding(sources, path, message)


def _finding(sources: SourceLines, path: str, message: Mapping[str, Any]) -> Finding:
    rule = text_of(message["ruleId"] or _SYNTAX)
    place = Place(path=path, line=int(message.get("line") or 0), column=int(message.get("column") or 0))
    severity = Severity.MEDIUM if message["severity"] == _ERROR else Severity.LOW
    offers = [text_of(one.get("desc"), default="") for one in message.get("suggestions") or ()]
    return Finding(
        category=_SYNTAX if rule == _SYNTAX else "bugs",
        evidence=sources.at(path, place.line) if place.line else "",
        fix=Fix.UNSAFE if message.get("fix") else Fix.NONE,
        links=(_LINK.format(rule),) if rule != _SYNTAX and "/" not in rule else (),
        message=text_of(message["message"]),
        places=(place,),
        rule=rule,
        severity=Severity.HIGH if rule == _SYNTAX else severity,
        suggestion=next(iter(offers), "eslint --fix" if message.get("fix") else ""),
        tool=Eslint.name,
    )

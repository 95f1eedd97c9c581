"""The verbs that let discovery tools look: scan and look.

Owns one invariant: ``scan`` looks at what is committed and remembers it; ``look`` looks at the files as they lie here, and
neither remembers nor changes anything.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.sarif import sarif_document
from coordinator.api.verb import Reach, Reply, Verb, operand, option
from coordinator.api.view import WARN, Line, duration, line, plural, wrap
from coordinator.checks.adapter import walk_files
from coordinator.checks.adapters import ADAPTERS
from coordinator.checks.asking import ask, locate_for
from coordinator.checks.detect import surroundings_of
from coordinator.domain.check import BrokenBy
from coordinator.domain.errors import BadInput
from coordinator.domain.finding import CLOSING, REPORTING, Fix, ScanStatus
from coordinator.domain.problem import Problem
from coordinator.kit import lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from coordinator.api.desk import Desk, FoldSeen
    from coordinator.domain.finding import Finding, ScanReport
    from coordinator.domain.settings import DiscoverySettings

COULD_NOT_LOOK: Final = 126
"""The exit code of ``look`` when the tool gave no answer: what a shell says of a program that it cannot run."""

_SHOWN: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanArguments:
    tools: tuple[str, ...] = operand("tools to scan with; none: the configured ones", default=(), metavar="TOOL")
    fresh: bool = option("run tools also when nothing that they read has changed", default=False)
    sarif: str = option("also write what is open as SARIF 2.1.0", default="", metavar="FILE", path=True)


async def scan(desk: Desk, arguments: ScanArguments) -> Reply:
    async with desk.operate() as operations:
        rows = [_fold_row(report) for report in await operations.scan(arguments.tools, fresh=arguments.fresh)]
        if arguments.sarif:
            document = sarif_document(operations.findings(), rows)
            lock.write_atomic(Path(arguments.sarif), json.dumps(document, indent=2).encode())
    not_scanned = any(row["status"] not in REPORTING for row in rows)
    return Reply(data={"scans": rows, "sarif": arguments.sarif}, exit_code=1 if not_scanned else 0)


def _fold_row(report: FoldSeen) -> dict[str, Any]:
    return {
        "tool": report.tool,
        "status": str(report.status),
        "reason": report.reason,
        "remedy": report.remedy,
        "total": report.total,
        "opened": report.opened,
        "reopened": report.reopened,
        "closed": report.closed,
        "queued": report.queued,
        "took_s": report.took_s,
        "unchanged": report.unchanged,
    }


def show_scan(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = []
    for found in data["scans"]:
        lines += _scan_lines(found, width)
    if data["sarif"]:
        lines += wrap(f"written to {data['sarif']}", width)
    return lines or [line("nothing here calls for one of the tools; name some in [discovery] extra_tools")]


def _scan_lines(found: Mapping[str, Any], width: int) -> list[Line]:
    tool, reason = found["tool"], found["reason"]
    if found["status"] == ScanStatus.UNCALLED:
        return wrap(f"{tool}: not called for: {reason}", width)
    if found["status"] not in REPORTING:
        remedy = f"; {found['remedy']}" if found["remedy"] else ""
        return wrap(f"{tool}: not scanned ({found['status']}): {reason}{remedy}", width, style=WARN)
    if found["unchanged"]:
        return wrap(f"{tool}: {plural(found['total'], 'finding')}; nothing that it reads has changed", width)
    back = f", {found['reopened']} of them fixed before" if found["reopened"] else ""
    counted = f"{found['opened']} new{back}, {found['closed']} gone since the last scan"
    text = f"{tool}: {plural(found['total'], 'finding')}, {counted}, in {duration(found['took_s'])}"
    lines = wrap(text, width)
    if found["status"] == ScanStatus.PARTIAL:
        lines += wrap(f"{tool} saw a part only, so nothing was closed: {reason}", width, style=WARN)
    if found["queued"]:
        lines += wrap(f"{plural(found['queued'], 'task')} written into tasks/auto/", width)
    return lines


# -- look ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LookArguments:
    tool: str = operand("tool to look with", metavar="TOOL")
    rule: tuple[str, ...] = option("only findings of this rule (may be repeated)", default=(), metavar="RULE")
    path: tuple[str, ...] = option("only findings in this file (may be repeated)", default=(), metavar="FILE")
    fix: tuple[str, ...] = option("only findings with this kind of fix (may be repeated)", default=(), metavar="KIND")
    spare: tuple[str, ...] = option(
        "leave out one finding that is this one (may be repeated)", default=(), metavar="ID"
    )


async def look(desk: Desk, arguments: LookArguments) -> Reply:
    problems = []
    if arguments.tool not in ADAPTERS:
        problems.append(Problem(file="TOOL", message=f"no tool {arguments.tool!r}", expected=", ".join(ADAPTERS)))
    for kind in arguments.fix:
        if kind not in set(Fix):
            problems.append(Problem(file="--fix", message=f"no fix {kind!r}", expected=", ".join(Fix)))
    if problems:
        raise BadInput(problems)
    report = await _look(desk, arguments.tool)
    found = list(_unspared((one for one in report.findings if _is_meant(one, arguments)), arguments.spare))
    hidden = sorted({path for path in arguments.path if report.hides(path)})
    data = {
        "tool": arguments.tool,
        "status": str(report.status),
        "reason": report.reason,
        "hidden": hidden,
        "findings": [_finding_row(one) for one in found],
    }
    return Reply(data=data, exit_code=_code(report, bool(found or hidden)))


def _code(report: ScanReport, left: bool) -> int:
    """That the machine kept the tool from looking is nobody's fault; what breaks it on this tree is the tree's."""
    if report.status is ScanStatus.UNAVAILABLE or report.broken_by not in {None, BrokenBy.TREE}:
        return COULD_NOT_LOOK
    return 1 if left or report.status not in CLOSING else 0


async def _look(desk: Desk, tool: str) -> ScanReport:
    adapter, root = ADAPTERS[tool], desk.root
    settings = await asyncio.to_thread(_settings_here, desk.settings.discovery, root)
    around = await asyncio.to_thread(surroundings_of, root, desk.settings.gate)
    files = await asyncio.to_thread(walk_files, root)
    located = await asyncio.to_thread(locate_for, adapter, settings, root, around)
    with tempfile.TemporaryDirectory(prefix="coordinator-look-") as folder:
        scratch, cache = Path(folder) / "scratch", Path(folder) / "cache"
        return await ask(adapter, files, located, settings, around, cache=cache, named=True, scratch=scratch)


def _settings_here(settings: DiscoverySettings, root: Path) -> DiscoverySettings:
    """A program that the settings name by a path from the top folder may be missing in a clean tree: the gate, for one, has
    the project's environment on PATH instead."""
    tools = (
        replace(one, path="") if one.path and not (root / Path(one.path).expanduser()).exists() else one
        for one in settings.tool
    )
    return replace(settings, tool=tuple(tools))


def _is_meant(finding: Finding, arguments: LookArguments) -> bool:
    return (
        (not arguments.rule or finding.rule in arguments.rule)
        and (not arguments.path or finding.place.path in arguments.path)
        and (not arguments.fix or finding.fix in arguments.fix)
    )


def _unspared(found: Iterable[Finding], spare: Sequence[str]) -> Iterator[Finding]:
    """Each id stands for one: where a line was written a third time, two that were meant to stay excuse no third."""
    left = Counter(spare)
    for one in found:
        if left[one.kind] > 0:
            left[one.kind] -= 1
        else:
            yield one


def _finding_row(finding: Finding) -> dict[str, Any]:
    return {
        "fingerprint": finding.fingerprint,
        "id": finding.kind,
        "rule": finding.rule,
        "severity": finding.severity.name.lower(),
        "message": finding.message,
        "path": finding.place.path,
        "line": finding.place.line,
        "fix": str(finding.fix),
    }


def show_look(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = []
    for one in data["findings"][:_SHOWN]:
        place = f"{one['path']}:{one['line']}" if one["line"] else one["path"]
        lines += wrap(f"{place}: {one['rule']} {one['message']}", width, indent=2)
    if len(data["findings"]) > _SHOWN:
        lines.append(line(f"… and {len(data['findings']) - _SHOWN} more"))
    if data["status"] not in REPORTING:
        lines += wrap(f"{data['tool']}: could not look ({data['status']}): {data['reason']}", width, style=WARN)
    elif data["hidden"]:
        lines += wrap(f"{data['tool']} could not look into {', '.join(data['hidden'])}", width, style=WARN)
    return lines or [line(f"{data['tool']} finds nothing")]


VERBS = (
    Verb(
        name="look",
        arguments=LookArguments,
        call=look,
        anywhere=True,
        doc="Run one tool on the files as they are here; remember nothing. Exit 1: it found something, 126: it could not look.",
        example="coordinator look ruff --rule F401",
        reach=Reach.HERE,
        show=show_look,
    ),
    Verb(
        name="scan",
        arguments=ScanArguments,
        call=scan,
        doc="Run the discovery tools now and fold what they find.",
        example="coordinator scan ruff --sarif findings.sarif",
        show=show_scan,
    ),
)

"""``pip-audit`` as a discovery tool: known vulnerabilities of the Python packages that a tree asks for.

Owns one invariant: a package is called sound only when the vulnerability service answered for it. What the tree pins is
asked about as it stands, what it leaves open as it is installed in the project's environment; nothing is resolved or installed,
so no package's own code runs. What the pins are ``python_pins`` reads; they are moved by ``pip_upgrade``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks import pip_upgrade
from coordinator.checks.adapter import (
    UNREADABLE,
    SourceLines,
    accept_by_look,
    broken,
    text_of,
    unavailable,
    walk_files,
)
from coordinator.checks.inroads import site_folders
from coordinator.checks.osv_scores import scores_of, service_of
from coordinator.checks.python_pins import (
    PACKAGE_FILES,
    canonical_package,
    installed_for,
    is_later,
    is_version,
    latest_of,
    read_demands,
)
from coordinator.checks.tool import exit_words, last_line
from coordinator.domain.errors import ToolFailed
from coordinator.domain.finding import (
    Finding,
    Fix,
    Place,
    ScanReport,
    ScanStatus,
    Severity,
    identified,
    severity_of_cvss,
)
from coordinator.kit import lock

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from coordinator.checks.adapter import FixResult, FixTask, Printed, ScanOrder, TreeFiles
    from coordinator.checks.python_pins import Demand, Demands
    from coordinator.checks.tool import ToolRun
    from coordinator.policy.grouping import TaskGroup

_KNOWN: Final = "vulnerable.json"
_MOST_MOVES: Final = 8
"""Versions tried, one after another, before a package is given up as one that no version mends."""
_NO_SERVICE: Final = re.compile(
    r"ConnectionError|NameResolutionError|Max retries exceeded|ReadTimeout|ConnectTimeout|ProxyError|SSLError"
    r"|ServiceError|Could not connect|not redirecting properly|network may be blocking|HTTPError|JSONDecodeError"
)
_WORDS: Final = (
    (re.compile("CERTIFICATE_VERIFY_FAILED"), "its certificate is trusted by nobody here (SSL_CERT_FILE names who is)"),
    (re.compile("NameResolutionError|Name or service not known|nodename nor servname"), "its name is not known here"),
    (re.compile("ProxyError"), "the proxy lets nothing through"),
    (re.compile("refused"), "the connection was refused"),
    (re.compile("timed out|Timeout"), "it took too long to answer"),
)
"""What a fault of the network comes to, in a person's words."""
_ORDER_OF_IDS: Final = ("PYSEC-", "CVE-", "GHSA-")

_Version = tuple[str, str]
"""A package and its version."""


class _CouldNotAsk(ToolFailed):
    """Carries the report that says why."""

    def __init__(self, report: ScanReport) -> None:
        super().__init__(report.reason)
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """``id`` is the one to cite, ``ids`` all of them, ``fixes`` versions that mend it."""

    fixes: tuple[str, ...]
    id: str
    ids: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAnswer:
    """``skipped`` are packages that the service does not know, with its words."""

    advisories: Mapping[_Version, tuple[Advisory, ...]]
    skipped: Mapping[str, str]


class PipAudit:
    fixes = frozenset({Fix.VERSION})
    name = "pip-audit"
    program = "pip-audit"
    reads = PACKAGE_FILES
    remedy = "pip install pip-audit"
    stale_after_s = 12 * 3600.0
    standard = True

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        demands = read_demands(files)
        return "" if demands.found or demands.odd else "no file of it asks for Python packages"

    async def scan(self, order: ScanOrder) -> ScanReport:
        demands = await asyncio.to_thread(lambda: read_demands(walk_files(order.tree)))
        installed = await asyncio.to_thread(_installed, order, demands)
        wanted = {(one.package, one.version) for one in demands.pins} | set(installed.items())
        if not wanted:
            reason = f"{', '.join(sorted(demands.odd))} cannot be read" if demands.odd else _NOTHING_EXACT
            return broken(self.name, reason) if demands.odd else unavailable(self.name, reason)
        try:
            asked = _Asked(order)
            answer = await asked.about(wanted)
            if len(answer.skipped) >= len({package for package, _ in wanted}):
                reason = f"the vulnerability service knows none of the packages: {next(iter(answer.skipped.values()))}"
                return unavailable(self.name, f"{reason} (a mirror?)", asked.last)
            moves = await asked.sound_versions(answer)
        except _CouldNotAsk as failed:
            return failed.report
        names = [one.ids for advisories in answer.advisories.values() for one in advisories]
        service = service_of(order.settings.arguments)
        scores = await asyncio.to_thread(scores_of, names, service, order.cache)
        found = identified(_findings(SourceLines(order.tree), demands, installed, answer, moves, scores))
        unread = demands.odd | await asyncio.to_thread(_lost_from_sight, order.cache, demands, answer)
        return ScanReport(
            findings=found, status=ScanStatus.SCANNED, tool=self.name, took_s=asked.took_s, unread=tuple(sorted(unread))
        )

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        return accept_by_look(group)

    def options_fault(self, options: Sequence[str]) -> str:
        return f"asks for an option that this agent does not use: {options[0]}" if options else ""

    async def fix(self, task: FixTask) -> FixResult:
        return await asyncio.to_thread(pip_upgrade.apply, task)


_NOTHING_EXACT: Final = (
    "nothing tells which versions are used: no requirement is pinned, there is no lock file, and what the project asks for is"
    " not installed in an environment of its own"
)


class _Asked:
    """Runs of the tool for one scan, each about versions of different packages: it takes no package twice."""

    def __init__(self, order: ScanOrder) -> None:
        self._order = order
        self.last: ToolRun | None = None
        self.took_s = 0.0

    async def about(self, wanted: Iterable[_Version]) -> AuditAnswer:
        """Raises ``_CouldNotAsk``."""
        advisories: dict[_Version, tuple[Advisory, ...]] = {}
        skipped: dict[str, str] = {}
        for batch in _batches(wanted):
            number = len(list(self._order.scratch.glob("asked-*.txt")))
            file = self._order.scratch / f"asked-{number}.txt"
            file.write_text("".join(f"{package}=={version}\n" for package, version in batch.items()))
            words = ["--requirement", str(file), "--no-deps", "--disable-pip", "--format", "json", "--desc", "on"]
            words += ["--aliases", "on", "--progress-spinner", "off", "--cache-dir", str(self._order.cache / "http")]
            printed = await self._order.run(words)
            self.last, self.took_s = printed.ran, self.took_s + printed.ran.took_s
            answer = await asyncio.to_thread(understood_audit, printed, batch)
            if isinstance(answer, ScanReport):
                raise _CouldNotAsk(answer)
            advisories |= answer.advisories
            skipped |= answer.skipped
        return AuditAnswer(advisories=advisories, skipped=skipped)

    async def sound_versions(self, answer: AuditAnswer) -> dict[_Version, str]:
        """The lowest version of each vulnerable one, up the ladder of fixes, that mends all that can be mended and has no
        vulnerability of its own.
        """
        moves = {at: _next_fix(at[1], found) for at, found in answer.advisories.items() if found}
        sound: dict[_Version, str] = {}
        for _ in range(_MOST_MOVES):
            left = {at: to for at, to in moves.items() if to}
            if not left:
                break
            then = await self.about({(package, to) for (package, _), to in left.items()})
            for at, to in left.items():
                bad = then.advisories.get((at[0], to), ())
                hopeless = {one.id for one in answer.advisories[at] if not _next_fix(at[1], [one])}
                new = [one for one in bad if one.id not in hopeless]
                if at[0] not in then.skipped and not new:
                    sound[at] = to
                stuck = at[0] in then.skipped or not all(_next_fix(to, [one]) for one in new)
                moves[at] = "" if at in sound or stuck else _next_fix(to, new)
        return sound


def _batches(wanted: Iterable[_Version]) -> list[dict[str, str]]:
    batches: list[dict[str, str]] = []
    for package, version in sorted(set(wanted)):
        batch = next((one for one in batches if package not in one), None)
        if batch is None:
            batch = {}
            batches.append(batch)
        batch[package] = version
    return batches


def _next_fix(version: str, advisories: Iterable[Advisory]) -> str:
    """The lowest version after ``version`` that mends all of those that can be mended; empty when there is none."""
    firsts = [[fix for fix in one.fixes if is_later(fix, version)] for one in advisories]
    return latest_of(fixes[0] for fixes in firsts if fixes) if any(firsts) else ""


def understood_audit(printed: Printed, batch: Mapping[str, str]) -> AuditAnswer | ScanReport:
    """The tool exits with 1 for what it found and for what went wrong; only the first has a list of all that was asked."""
    ran, name = printed.ran, PipAudit.name
    if ran.problem:
        return broken(name, "", ran)
    try:
        text = printed.out.read_text(encoding="utf-8")
        if not text.strip():
            return _failed(ran)
        answer = _answer(json.loads(text)["dependencies"], batch)
    except UNREADABLE as error:
        return broken(name, f"its report could not be read: {type(error).__name__}: {error}", ran)
    silent = set(batch) - set(answer.skipped) - {package for package, _ in answer.advisories}
    if silent:
        return broken(name, f"it did not tell of {', '.join(sorted(silent))}", ran)
    if ran.code != (1 if any(answer.advisories.values()) else 0):
        return broken(name, f"it {exit_words(ran)}", ran)
    return answer


def _failed(ran: ToolRun) -> ScanReport:
    errors = [line for line in ran.output.splitlines() if line.startswith("ERROR")]
    reason = (errors or [last_line(ran.output)])[0]
    if _NO_SERVICE.search(ran.output):
        return unavailable(
            PipAudit.name, f"the vulnerability service did not answer: {_plainly(ran.output) or reason}", ran
        )
    return broken(PipAudit.name, f"it exited with {ran.code}: {reason or 'without a word'}", ran)


def _plainly(said: str) -> str:
    """Without the chain of exceptions that it comes in; empty where nobody knows the words for it."""
    for line in reversed(said.splitlines()):
        answered = re.search(r"HTTPError: (.+) for url: https?://([^/:]+)", line)
        if answered:
            return f"{answered[2]} says {answered[1]}"
        host = re.search(r"host='([^']+)'", line)
        words = next((words for pattern, words in _WORDS if pattern.search(line)), "")
        if host and words:
            return f"{host[1]}: {words}"
    return ""


def _answer(items: Iterable[Mapping[str, Any]], batch: Mapping[str, str]) -> AuditAnswer:
    advisories: dict[_Version, tuple[Advisory, ...]] = {}
    skipped: dict[str, str] = {}
    for item in items:
        package = canonical_package(text_of(item["name"]))
        if "skip_reason" in item:
            skipped[package] = text_of(item["skip_reason"])
        elif package in batch:
            advisories[package, batch[package]] = tuple(sorted(map(_advisory, item["vulns"]), key=lambda one: one.id))
    return AuditAnswer(advisories=advisories, skipped=skipped)


def _advisory(item: Mapping[str, Any]) -> Advisory:
    """Which of its ids comes first differs from run to run and from service to service."""
    ids = {text_of(item["id"]), *map(text_of, item.get("aliases") or ())}
    ranked = sorted(ids, key=lambda one: (next((n for n, p in enumerate(_ORDER_OF_IDS) if one.startswith(p)), 9), one))
    fixes = [text_of(version) for version in item.get("fix_versions") or ()]
    usable = [version for version in dict.fromkeys(fixes) if is_version(version)]
    summary = text_of(item.get("description"), default="")
    return Advisory(fixes=_ascending(usable), id=ranked[0], ids=tuple(ranked), summary=" ".join(summary.split())[:300])


def _ascending(versions: Collection[str]) -> tuple[str, ...]:
    left, ordered = list(versions), []
    while left:
        top = latest_of(left)
        left.remove(top)
        ordered.append(top)
    return tuple(reversed(ordered))


def _installed(order: ScanOrder, demands: Demands) -> dict[str, str]:
    """What is installed for the project and neither pinned by a file of it nor ruled out by what it asks for: such an
    environment is only older than the tree.
    """
    python = _project_python(order)
    pinned = {one.package for one in demands.pins}
    open_ones = {one.package for one in demands.found} - pinned
    if python is None or not open_ones:
        return {}
    there = installed_for(site_folders(python), open_ones)
    return {
        package: version
        for package, version in there.items()
        if package not in pinned and all(one.admits(version) for one in demands.of(package))
    }


def _project_python(order: ScanOrder) -> Path | None:
    """Of the project's environment; in the gate, which has only its programs, of the first environment on PATH."""
    first = [*order.surroundings.first, *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    for folder in first:
        if (folder.parent / "pyvenv.cfg").is_file() and folder.parent != Path(sys.prefix):
            return folder / "python"
    return None


def _findings(
    lines: SourceLines,
    demands: Demands,
    installed: Mapping[str, str],
    answer: AuditAnswer,
    moves: Mapping[_Version, str],
    scores: Mapping[str, float],
) -> Iterator[Finding]:
    for at, advisories in answer.advisories.items():
        package, version = at
        pins = [one for one in demands.pins if (one.package, one.version) == at]
        open_ones = demands.of(package) or demands.found[:1] if installed.get(package) == version else []
        for demand in (*pins, *open_ones[:1]):
            for one in advisories:
                found = _finding(lines, demand, one, at, moves.get(at, ""), direct=demand.package == package)
                score = scores.get(one.id)
                yield found if score is None else replace(found, cvss=score, severity=severity_of_cvss(score))


def _finding(
    lines: SourceLines, demand: Demand, advisory: Advisory, at: _Version, sound: str, *, direct: bool
) -> Finding:
    package, version = at
    mended = sound if _next_fix(version, [advisory]) else ""
    place = Place(path=demand.path, line=demand.line if direct else 0)
    known = f"{package} {version} has a known vulnerability, {advisory.id}"
    return Finding(
        about=f"{package}|{advisory.id}",
        advisories=advisory.ids,
        category="security",
        evidence=lines.at(place.path, place.line) if place.line else "",
        fix=Fix.VERSION if mended and demand.version and not demand.made else Fix.NONE,
        fix_version=mended or _next_fix(version, [advisory]),
        installed=version,
        links=(f"https://osv.dev/vulnerability/{advisory.id}",),
        message=f"{known}: {advisory.summary}" if advisory.summary else known,
        package=package,
        places=(place,),
        rule=advisory.id,
        scope="",  # one move for the whole repository: between two the tree might not be installable
        severity=Severity.HIGH,
        suggestion=_suggestion(demand, package, mended, direct=direct),
        tool=PipAudit.name,
    )


def _suggestion(demand: Demand, package: str, mended: str, *, direct: bool) -> str:
    if not mended:
        return ""
    if demand.made:
        return f"move to {package}=={mended} with what makes {demand.path}, not by hand ({demand.made})"
    if demand.version:
        return f"{package}=={mended}"
    return f"ask for {package}>={mended}" if direct else f"ask for {package}>={mended}, which something here requires"


def _lost_from_sight(cache: Path, demands: Demands, answer: AuditAnswer) -> set[str]:
    """Files of packages that were vulnerable at the last look and that the service does not know today: nothing of them may
    be taken for mended.
    """
    last = lock.read_object(cache / _KNOWN) or {}
    lost = {package for package in answer.skipped if package in last}
    known = {package: 1 for (package, _), found in answer.advisories.items() if found}
    lock.write_atomic(cache / _KNOWN, json.dumps(known | dict.fromkeys(lost, 1)).encode())
    return {one.path for one in demands.found if one.package in lost}

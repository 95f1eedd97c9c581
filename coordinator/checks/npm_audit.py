"""``npm audit`` as a discovery tool: known vulnerabilities of the packages that npm's lock files pin.

Owns one invariant: a registry that has no audit endpoint, as many mirrors have none, makes nothing clean. Nothing is installed:
lock files are all that is read. The fixes that it offers move other packages than the one they are for, so none is applied.
"""

from __future__ import annotations

import asyncio
import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import (
    UNREADABLE,
    FindingTool,
    SourceLines,
    broken,
    glob_matcher,
    text_of,
    unavailable,
    walk_files,
)
from coordinator.checks.tool import exit_words, last_line
from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles

_LOCKS: Final = ("npm-shrinkwrap.json", "package-lock.json")
_NO_ENDPOINT: Final = re.compile(r"40[45] |501 ")
_NO_SERVICE: Final = re.compile(
    r"audit endpoint returned an error|ECONNREFUSED|ECONNRESET|EAI_AGAIN|ENOTFOUND|ETIMEDOUT|ENETUNREACH|ERR_SOCKET|network"
)
_SEVERITIES: Final = MappingProxyType(
    {
        "critical": Severity.CRITICAL,
        "high": Severity.HIGH,
        "info": Severity.INFO,
        "low": Severity.LOW,
        "moderate": Severity.MEDIUM,
    }
)


class NpmAudit(FindingTool):
    name = "npm-audit"
    program = "npm"
    reads = (*_LOCKS, "package.json", ".npmrc")
    remedy = "install Node.js, which npm comes with"
    stale_after_s: float | None = 12 * 3600.0
    standard = True

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any(*_LOCKS) else "there is no lock file of npm's"

    async def scan(self, order: ScanOrder) -> ScanReport:
        names = (await asyncio.to_thread(walk_files, order.tree)).names
        found: list[Finding] = []
        took_s = 0.0
        for lock in locks_of(names):
            words = ["audit", "--json", "--package-lock-only", "--cache", str(order.cache / "npm"), "--logs-max", "0"]
            printed = await order.run(words, cwd=(order.tree / lock).parent)
            took_s += printed.ran.took_s
            answer = await asyncio.to_thread(understood_npm, order.tree, lock, printed)
            if isinstance(answer, ScanReport):
                return answer
            found += answer
        report = await asyncio.to_thread(identified, found)
        return ScanReport(findings=report, status=ScanStatus.SCANNED, tool=self.name, took_s=took_s)


def locks_of(names: Collection[str]) -> list[str]:
    """A shrinkwrap is what npm goes by where a folder has both, so that the other one says nothing."""
    locks = set(filter(glob_matcher(_LOCKS), names))
    shadowed = {f"{folder}package-lock.json" for folder in (one.removesuffix(_LOCKS[0]) for one in locks)}
    return sorted(one for one in locks if one.endswith(_LOCKS[0]) or one not in shadowed)


def understood_npm(tree: Path, lock: str, printed: Printed) -> list[Finding] | ScanReport:
    """Exit code 1 is that of vulnerabilities and of every fault; only the first has a list of them."""
    ran, name = printed.ran, NpmAudit.name
    if ran.problem or ran.code not in {0, 1}:
        return broken(name, f"it {exit_words(ran)}", ran)
    try:
        data = json.loads(printed.out.read_text(encoding="utf-8"))
        if "vulnerabilities" not in data:
            return _failed(lock, data, printed)
        found = list(_findings(tree, lock, data["vulnerabilities"]))
    except UNREADABLE as error:
        reason = f"its report on {lock} could not be read: {type(error).__name__}: {error}; it {exit_words(ran)}"
        return broken(name, reason, ran)
    if bool(found) is not (ran.code == 1):
        return broken(name, f"it exited with {ran.code} and named {len(found)} vulnerabilities of {lock}", ran)
    return found


def _failed(lock: str, data: Mapping[str, Any], printed: Printed) -> ScanReport:
    error = data.get("error") or {}
    said = text_of(data.get("message") or error.get("summary") or last_line(printed.ran.output))
    if _NO_ENDPOINT.match(said):
        reason = f"the registry has no audit endpoint, as many mirrors have none: {said}"
        return unavailable(NpmAudit.name, reason, printed.ran)
    if _NO_SERVICE.search(f"{printed.ran.output}\n{said}"):
        return unavailable(NpmAudit.name, f"the registry did not answer for {lock}: {said}", printed.ran)
    return broken(NpmAudit.name, f"npm audit failed for {lock}: {said}", printed.ran)


def _findings(tree: Path, lock: str, packages: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """A package that is only vulnerable through another one is that other one's finding."""
    pinned = _Pinned(tree, lock)
    for package, told in packages.items():
        for advisory in told["via"]:
            if not isinstance(advisory, str):
                yield _finding(pinned, package, told, advisory)


class _Pinned:
    """Where a lock file has a package, and in which version."""

    def __init__(self, tree: Path, lock: str) -> None:
        self.lines = SourceLines(tree)
        self.lock = lock
        text = (tree / lock).read_text(encoding="utf-8")
        told = json.loads(text)
        self._entries, self._nested = told.get("packages") or {}, told.get("dependencies") or {}
        self._numbers: dict[str, list[int]] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            self._numbers.setdefault(line.strip(), []).append(number)

    def place(self, node: str) -> Place:
        """In a file of npm 6 and before several entries may be called the same: then the line is not known."""
        key = node if self._entries else node.rpartition("node_modules/")[2]
        lines = self._numbers.get(f"{json.dumps(key)}: {{", ())
        return Place(path=self.lock, line=lines[0] if len(lines) == 1 else 0)

    def version(self, node: str) -> str:
        entry, within = self._entries.get(node) or {}, self._nested
        if not self._entries:
            for name in filter(None, (part.strip("/") for part in node.split("node_modules/"))):
                entry = within.get(name) or {}
                within = entry.get("dependencies") or {}
        return text_of(entry.get("version"), default="")


def _finding(pinned: _Pinned, package: str, told: Mapping[str, Any], advisory: Mapping[str, Any]) -> Finding:
    url = text_of(advisory.get("url"), default="")
    rule = url.rstrip("/").rpartition("/")[2] or f"npm-{advisory['source']}"
    nodes = [text_of(node) for node in told.get("nodes") or ()] or [f"node_modules/{package}"]
    score = (advisory.get("cvss") or {}).get("score")
    cvss = float(score) if score and 0 < float(score) <= 10 else None
    version, title = pinned.version(nodes[0]), text_of(advisory.get("title"), default="a known vulnerability")
    known = f"{package} {version}".strip()
    moved, suggestion = _offered(package, told.get("fixAvailable"))
    return Finding(
        about=f"{package}|{rule}",
        advisories=(rule,),
        category="security",
        cvss=cvss,
        fix_version=moved,
        installed=version,
        links=(url,) if url else (),
        message=f"{known} has a known vulnerability, {rule}: {' '.join(title.split())[:300]}",
        package=package,
        places=tuple(dict.fromkeys(pinned.place(node) for node in nodes)),
        rule=rule,
        scope=pinned.lock.rpartition("/")[0],
        severity=_SEVERITIES.get(advisory.get("severity") or "", Severity.HIGH),
        suggestion=suggestion,
        tool=NpmAudit.name,
    )


def _offered(package: str, offer: Any) -> tuple[str, str]:
    """What npm would do: nothing, an update that its ranges allow, or another version of something that asks for it."""
    if not offer:
        return "", ""
    if offer is True:
        return "", "npm audit fix --package-lock-only"
    name, version = text_of(offer["name"]), text_of(offer["version"])
    breaking = " (a major version)" if offer.get("isSemVerMajor") else ""
    return version if name == package else "", f"npm install {name}@{version}{breaking}"

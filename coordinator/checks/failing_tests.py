"""``pytest`` as a discovery tool: tests of the target that fail whenever they are run.

Owns one invariant: a test is reported when it failed in two runs one after the other, so that nobody is sent after one that
fails now and then. What the run needs in order to be about the tree is ``pytest``'s, which judges changes for the gate.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.checks import origins
from coordinator.checks.adapter import UNREADABLE, FindingTool, SourceLines, broken, unavailable
from coordinator.checks.pytest import LARGEST_REPORT_BYTES, PYTEST_EXITS, pytest_complaint, pytest_words, test_name
from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from coordinator.checks.adapter import Printed, ScanOrder, TreeFiles
    from coordinator.policy.grouping import TaskGroup

_BROKEN_FILE: Final = "broken-test-file"
_FAILING: Final = "failing-test"
_FRAME: Final = re.compile(r"^([^\s:][^:\n]*\.py):(\d+):", re.MULTILINE)
_LONGEST_FAILURE: Final = 200_000
_MISSING: Final = re.compile(r"No module named '([A-Za-z_]\w*)")
_MOST_PLACES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedTest:
    """``inner`` is the test's id without its file, empty for a file that could not be collected; ``line`` is 1-based."""

    file: str
    inner: str
    line: int
    said: str

    @property
    def lacks(self) -> str:
        """The top-level module that a file could not be imported for."""
        found = _MISSING.findall(self.said)
        return found[-1] if found and not self.inner else ""


class FailingTests(FindingTool):
    name = "pytest"
    program = "pytest"
    reads = ("*",)
    remedy = "pip install pytest into the project's environment"
    stale_after_s = None
    standard = False

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any("test_*.py", "*_test.py") else "there is no file of tests"

    async def scan(self, order: ScanOrder) -> ScanReport:
        first = await self._failed(order, "all")
        if isinstance(first, ScanReport):
            return first
        failed, took_s = first
        lacking = {one.file: one.lacks for one in failed if one.lacks and not has_module(order.tree, one.lacks)}
        files = sorted({one.file for one in failed} - set(lacking))
        if files:
            second = await self._failed(order, "again", named_for_pytest(files))
            if isinstance(second, ScanReport):
                return second
            again = {(one.file, one.inner) for one in second[0]}
            failed, took_s = [one for one in failed if (one.file, one.inner) in again], took_s + second[1]
        found = await asyncio.to_thread(findings_of_tests, order.tree, failed, lacking)
        if isinstance(found, ScanReport):
            return found
        unread = {one.place.path for one in found if one.rule == _BROKEN_FILE} | set(lacking)
        report = ScanReport(
            findings=found, status=ScanStatus.SCANNED, tool=self.name, took_s=took_s, unread=tuple(sorted(unread))
        )
        if lacking:
            reason = f"{', '.join(sorted(set(lacking.values())))} is not installed for it, which {len(lacking)} test files need"
            return replace(report, status=ScanStatus.PARTIAL, reason=reason)
        return report

    async def _failed(
        self, order: ScanOrder, run: str, files: Sequence[str] = ()
    ) -> tuple[list[FailedTest], float] | ScanReport:
        """What failed in one run of ``files``, of all when there are none, and how long it took; or why nobody knows."""
        scratch = order.scratch / run
        scratch.mkdir()
        notes, report = origins.prepare(scratch), scratch / "junit.xml"
        env = order.environment()
        env["PYTHONPATH"] += f"{os.pathsep}{notes}"
        words = pytest_words(order.tree, scratch, report)
        printed = await order.run([*words, *(["--", *files] if files else [])], env=env)
        answer = await asyncio.to_thread(understood_tests, printed, report)
        if isinstance(answer, ScanReport) or order.surroundings.checkout is None:
            return answer if isinstance(answer, ScanReport) else (answer, printed.ran.took_s)
        around = order.surroundings
        borders = origins.Borders(
            checkout=around.checkout or order.tree, inroads=around.inroads, scratch=scratch, tree=order.tree
        )
        complaint = await asyncio.to_thread(borders.complaint, notes)
        return broken(self.name, complaint, printed.ran) if complaint else (answer, printed.ran.took_s)

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        return shlex.join(
            ["pytest", "-q", "-p", "no:cacheprovider", "--maxfail=0", "--", *named_for_pytest(group.files)]
        )


def named_for_pytest(files: Sequence[str]) -> list[str]:
    """``files`` as its command line takes them; none, which are all, where it would take one for something else."""
    odd = any("::" in file or "[" in file for file in files)
    return [] if odd else [f"./{file}" for file in files]


def understood_tests(printed: Printed, report: Path) -> list[FailedTest] | ScanReport:
    ran, name = printed.ran, FailingTests.name
    said = "\n".join((ran.output, printed.out.read_text(encoding="utf-8", errors="replace")[-4096:]))
    if ran.problem:
        return broken(name, "", ran)
    if ran.code not in {0, 1}:
        meaning = PYTEST_EXITS.get(ran.code or 0, f"exited with {ran.code}")
        return broken(name, f"pytest {meaning}: {pytest_complaint(said)}", ran)
    if not report.exists():
        how = unavailable if "No module named pytest" in said else broken
        return how(name, f"pytest left no report: {pytest_complaint(said)}", ran)
    try:
        failed = read_failures(report)
    except (*UNREADABLE, ElementTree.ParseError) as error:
        return broken(name, f"its report could not be read: {type(error).__name__}: {error}", ran)
    if bool(failed) is not (ran.code == 1):
        return broken(name, f"it exited with {ran.code} and named {len(failed)} failed tests", ran)
    return failed


def read_failures(report: Path) -> list[FailedTest]:
    """Of a JUnit file of the family ``xunit1``, which alone names files and lines."""
    if report.stat().st_size > LARGEST_REPORT_BYTES:
        raise ValueError(f"larger than {LARGEST_REPORT_BYTES} bytes")
    failed: dict[tuple[str, str], FailedTest] = {}
    for _, case in ElementTree.iterparse(report):
        if case.tag != "testcase":
            continue
        bad = next((child for child in case if child.tag in {"error", "failure"}), None)
        if bad is not None:
            one = _failed_test(case, bad)
            failed.setdefault((one.file, one.inner), one)
        case.clear()
    return list(failed.values())


def _failed_test(case: ElementTree.Element, bad: ElementTree.Element) -> FailedTest:
    file, classname, name = case.get("file") or "", case.get("classname") or "", case.get("name") or ""
    whole = test_name(file, classname, name)
    inner = whole.removeprefix(f"{file}::") if classname else ""
    if not file:
        raise ValueError(f"{whole!r:.100} is in no file")
    line = int(case.get("line") or -1) + 1 if inner else 0
    said = "\n".join((bad.get("message") or "", "".join(bad.itertext())))
    return FailedTest(file=file, inner=inner, line=line, said=said)


def findings_of_tests(
    tree: Path, failed: Sequence[FailedTest], lacking: Mapping[str, str]
) -> tuple[Finding, ...] | ScanReport:
    """``lacking`` are files that could not be imported for what is not installed: the environment's fault, not the tree's."""
    try:
        return identified(_findings(tree, failed, lacking))
    except UNREADABLE as error:
        return broken(FailingTests.name, f"its report could not be read: {type(error).__name__}: {error}")


def _findings(tree: Path, failed: Sequence[FailedTest], lacking: Mapping[str, str]) -> Iterator[Finding]:
    lines = SourceLines(tree)
    for one in failed:
        if one.file in lacking:
            continue
        reasons = [line[1:].strip() for line in one.said.splitlines() if line.startswith("E  ")]
        reason = (reasons[-1 if not one.inner else 0] if reasons else one.said.strip().partition("\n")[0])[:300]
        what = f"{one.inner} fails" if one.inner else "the file cannot be imported, so that none of its tests is run"
        yield Finding(
            about=one.inner or _BROKEN_FILE,
            category="tests",
            evidence=lines.at(one.file, one.line) if one.line else "",
            message=f"{what}: {reason}" if reason else what,
            places=tuple(_places(tree, one)),
            rule=_FAILING if one.inner else _BROKEN_FILE,
            severity=Severity.HIGH,
            tool=FailingTests.name,
        )


def _places(tree: Path, failed: FailedTest) -> list[Place]:
    """The test, then where the cause may be: files of the tree that the failure went through or that the test imports."""
    said = failed.said[:_LONGEST_FAILURE]
    frames = [(path, int(line)) for path, line in _FRAME.findall(said) if path != failed.file and len(line) < 8]
    imported = [(path, 0) for path in _imported(tree, failed.file)]
    places: dict[str, Place] = {failed.file: Place(path=failed.file, line=failed.line)}
    for path, line in (*frames, *imported):
        if path not in places and _is_of_tree(tree, path):
            places[path] = Place(path=path, line=line)
    return list(places.values())[:_MOST_PLACES]


def _is_of_tree(tree: Path, path: str) -> bool:
    file = tree / path
    return not os.path.isabs(path) and file.is_file() and file.resolve().is_relative_to(tree.resolve())


def _imported(tree: Path, file: str) -> Iterator[str]:
    try:
        code = ast.parse((tree / file).read_bytes()) if _is_of_tree(tree, file) else ast.Module([], [])
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    for node in ast.walk(code):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{one.name}" for one in node.names] + [node.module]
        for name in names:
            stem = name.replace(".", "/")
            yield from (f"{top}{stem}{end}" for top in ("", "src/") for end in (".py", "/__init__.py"))


def has_module(tree: Path, name: str) -> bool:
    """Whether the tree has a top-level module or package of that name."""
    return any(
        (tree / top / f"{name}{end}").exists() for top in (".", "src") for end in ("", ".py", ".pyi", "/__init__.py")
    )

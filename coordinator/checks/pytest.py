"""The project's own tests, run by pytest: which ran, which failed.

Owns one invariant: it has an opinion only when pytest finished and wrote its report and what was imported was the tree's
own; else it is broken. A test that was skipped did not run. Comparing two runs is ``policy.verdict``'s.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from coordinator.checks import origins
from coordinator.checks.tool import Surroundings, ToolRun, last_line, run_tool
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus

if TYPE_CHECKING:
    from pathlib import Path

NOTHING_COLLECTED: Final = "pytest found no tests"

PYTEST_EXITS: Final = MappingProxyType(
    {2: "was interrupted", 3: "had an internal error", 4: "could not be used", 5: NOTHING_COLLECTED}
)
_OPTIONS: Final = (
    *("-o", "junit_family=xunit1"),  # the variant that names each test's file
    *("-p", "no:cacheprovider"),  # writes into the tree
    *("-p", "no:randomly"),  # two runs are compared
    *("-p", origins.PLUGIN),
    "--continue-on-collection-errors",
    "--maxfail=0",  # a project's -x would hide which tests there are
    "--color=no",
    "-q",
)
LARGEST_REPORT_BYTES: Final = 256 * 1024 * 1024


class PytestCheck:
    """``required`` is whether ``python`` is the project's own environment: only then is a run that breaks an alarm."""

    name = "pytest"
    tests = True

    def __init__(self, *, python: Path, identity: str, required: bool, surroundings: Surroundings) -> None:
        self._python = python
        self._surroundings = surroundings
        self.key = f"pytest {identity} {' '.join(_OPTIONS)}"
        self.required = required

    async def run(self, tree: Path, scratch: Path) -> CheckOutcome:
        report = scratch / "junit.xml"
        argv = [str(self._python), "-m", "pytest", *pytest_words(tree, scratch, report)]
        notes = origins.prepare(scratch)
        env = self._surroundings.environment(tree, scratch)
        env["PYTHONPATH"] += f"{os.pathsep}{notes}"
        limits = self._surroundings.limits()
        ran = await run_tool(argv, cwd=tree, env=env, limits=limits, log=scratch / "output.log")
        outcome = await asyncio.to_thread(self._read, ran, report)
        if outcome.status is CheckStatus.BROKEN or self._surroundings.checkout is None:
            return outcome
        borders = origins.Borders(
            checkout=self._surroundings.checkout, inroads=self._surroundings.inroads, scratch=scratch, tree=tree
        )
        complaint = await asyncio.to_thread(borders.complaint, notes)
        return self._broken(ran, BrokenBy.TREE, complaint) if complaint else outcome

    def _broken(self, ran: ToolRun, by: BrokenBy, reason: str) -> CheckOutcome:
        return CheckOutcome(
            check=self.name,
            status=CheckStatus.BROKEN,
            broken_by=by,
            excerpt=ran.output,
            reason=reason,
            took_s=ran.took_s,
        )

    def _read(self, ran: ToolRun, report: Path) -> CheckOutcome:
        if ran.broken_by:
            return self._broken(ran, ran.broken_by, f"pytest {ran.problem}")
        if ran.code not in {0, 1}:
            meaning = PYTEST_EXITS.get(ran.code or 0, f"exited with {ran.code}")
            if ran.code == 5:
                return self._broken(ran, BrokenBy.TREE, NOTHING_COLLECTED)
            return self._broken(ran, BrokenBy.TREE, f"pytest {meaning}: {pytest_complaint(ran.output)}")
        if "No module named pytest" in ran.output and not report.exists():
            return self._broken(ran, BrokenBy.ENVIRONMENT, f"pytest is not installed for {self._python}")
        try:
            seen, failures = read_report(report)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            return self._broken(ran, BrokenBy.TREE, f"pytest left no readable report: {error}")
        failed = bool(failures) or ran.code == 1
        return CheckOutcome(
            check=self.name,
            status=CheckStatus.FAILED if failed else CheckStatus.PASSED,
            excerpt=ran.output,
            failures=failures,
            none_ran="" if seen else _why_none(failures, ran.output),
            reason=last_line(ran.output),
            seen=seen,
            took_s=ran.took_s,
        )


def pytest_words(tree: Path, scratch: Path, report: Path) -> list[str]:
    """The words behind ``pytest`` that make it run the tests of ``tree`` and write what came of them to ``report``."""
    words = [*_OPTIONS, f"--junitxml={report}", f"--rootdir={tree}", f"--confcutdir={tree}"]
    if not has_configuration(tree):
        # Otherwise pytest goes up and uses a configuration of the folders above, the user's checkout among them.
        empty = scratch / "pytest.ini"
        empty.write_text("[pytest]\n")
        words += ["-c", str(empty)]
    return words


def _why_none(failures: frozenset[str], output: str) -> str:
    if not failures:
        return "all of them were skipped"
    causes = [line[1:].strip() for line in output.splitlines() if line.startswith("E  ")]
    files = "the test file" if len(failures) == 1 else f"none of {len(failures)} test files"
    return (
        f"{files} could {'not ' * (len(failures) == 1)}be imported: {(causes or [pytest_complaint(output)])[-1][:200]}"
    )


def pytest_complaint(output: str) -> str:
    """The line that says what is wrong; pytest prints usage advice after it."""
    marked = [line.strip() for line in output.splitlines() if re.match(r"\s*(E  |ERROR|INTERNALERROR|!!+)", line)]
    return re.sub(r"^E +", "", (marked or [last_line(output)])[-1])[:200]


def has_configuration(tree: Path) -> bool:
    """Whether the tree's top folder has a file that pytest takes its configuration from."""
    if any((tree / name).is_file() for name in ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml")):
        return True
    try:
        if "pytest" in tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {}):
            return True
    except (OSError, ValueError, TypeError):
        pass  # absent or unreadable: then pytest does not take its configuration from it either
    for name, section in (("tox.ini", "pytest"), ("setup.cfg", "tool:pytest")):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string((tree / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, configparser.Error):
            continue
        if parser.has_section(section):
            return True
    return False


def read_report(report: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The tests that ran and those that failed, by names like ``tests/test_a.py::TestB::test_c[1]``."""
    if report.stat().st_size > LARGEST_REPORT_BYTES:
        raise ValueError(f"larger than {LARGEST_REPORT_BYTES} bytes")
    seen, failures = set(), set()
    for _, case in ElementTree.iterparse(report):
        if case.tag != "testcase":
            continue
        outcomes = {child.tag for child in case}
        name = test_name(case.get("file") or "", case.get("classname") or "", case.get("name") or "")
        if outcomes & {"error", "failure"}:
            failures.add(name)
        if case.get("classname") and "skipped" not in outcomes:
            seen.add(name)
        case.clear()
    return frozenset(seen), frozenset(failures)


def test_name(file: str, classname: str, name: str) -> str:
    if not classname:
        return file or name  # a file that could not be collected
    module = file.removesuffix(".py").replace("/", ".")
    inner = classname.removeprefix(module).strip(".") if module else classname
    parts = [file, *inner.split("."), name] if inner else [file, name]
    # Addresses differ from run to run; a name must not.
    return re.sub(r"0x[0-9a-fA-F]+", "0x", "::".join(part for part in parts if part))

"""``ruff format --check`` as a discovery tool: files that are not formatted as their project formats them.

Owns one invariant: a project that nowhere says that it uses this formatter is not told to. A file that cannot be parsed is
nothing to this tool (``ruff`` reports it); it is only known not to have been looked at.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks import ruff, ruff_fix
from coordinator.checks.adapter import UNREADABLE, FixResult, broken, glob_matcher, unavailable
from coordinator.checks.python_pins import PACKAGE_FILES
from coordinator.checks.ruff_lint import PYTHON_FILES, READS
from coordinator.checks.ruff_pin import wrong_release
from coordinator.domain.finding import Finding, Fix, Place, ScanReport, ScanStatus, Severity, identified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from coordinator.checks.adapter import FixTask, Printed, ScanOrder, TreeFiles
    from coordinator.policy.grouping import TaskGroup

_LINK: Final = "https://docs.astral.sh/ruff/formatter/"
_RULE: Final = "unformatted"
_TOLD_IN: Final = (
    ".github/workflows/*",
    ".gitlab-ci.yml",
    ".pre-commit-config.yaml",
    "Makefile",
    "justfile",
    "noxfile.py",
    "pyproject.toml",
    "tox.ini",
)
"""Where a project says how it is checked."""


class RuffFormat:
    fixes = frozenset({Fix.SAFE})
    name = "ruff-format"
    program = "ruff"
    reads = (*READS, *_TOLD_IN, *PACKAGE_FILES)
    remedy = "pip install ruff"
    stale_after_s = None
    standard = True

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        if not files.any(*PYTHON_FILES):
            return "there is no Python file"
        return (
            ""
            if named or _is_used(files)
            else "nothing in the project says that it is formatted with ruff ([discovery] extra_tools may)"
        )

    async def scan(self, order: ScanOrder) -> ScanReport:
        said = await order.run(["--version"])
        wrong = await asyncio.to_thread(
            wrong_release, order.tree, said.out.read_text(encoding="utf-8", errors="replace")
        )
        if wrong:
            return unavailable(self.name, f"{wrong}; install that one into the project's environment")
        options = await asyncio.to_thread(_options, order.tree)
        answer = await order.run(["format", "--check", "--no-cache", "--output-format", "json", *options, "."])
        return await asyncio.to_thread(understood, order, answer, options)

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        return shlex.join(["ruff", "format", "--check", "--no-cache", *options, "--", *group.files])

    def options_fault(self, options: Sequence[str]) -> str:
        return ruff_fix.options_fault(options)

    async def fix(self, task: FixTask) -> FixResult:
        tool = ruff_fix.RuffProgram(task.tree, task.scratch, task.checkout)
        files = [path for path in task.files if ruff_fix.is_within(task.tree, path)]
        before = {path: (task.tree / path).read_bytes() for path in files}
        await tool.format(files, task.options)
        changed = tuple(path for path in files if (task.tree / path).read_bytes() != before[path])
        if not changed:
            return FixResult(nothing="nothing to format: ruff would leave the task's files as they are")
        headline = f"ruff format: {ruff_fix.place_of(changed)}"
        return FixResult(
            done=tuple(f"{path}: formatted" for path in changed), files=changed, headline=headline, told="formatted"
        )


def _is_used(files: TreeFiles) -> bool:
    """Its own section in ruff's configuration, or the command in what checks the project."""
    config = ruff.own_configuration(files.root)
    if config is not None and "format" in config:
        return True
    told = filter(glob_matcher(_TOLD_IN), files.names)
    return any("ruff format" in text or "ruff-format" in text for text in map(files.text, told))


def _options(tree: Path) -> list[str]:
    return ruff_fix.format_options(ruff.configuration_arguments(tree))


def understood(order: ScanOrder, answer: Printed, options: Sequence[str]) -> ScanReport:
    """Exit code 2 is that of files which cannot be parsed, and of a configuration which cannot; only the first has a list."""
    ran, name = answer.ran, RuffFormat.name
    if ran.problem or ran.code not in {0, 1, 2}:
        return ruff.failed_report(name, ran)
    try:
        text = answer.out.read_text(encoding="utf-8")
        if not text.strip() and ran.code == 2:
            return ruff.failed_report(name, ran)
        items = json.loads(text or "[]")
        found = identified(_findings(order, items))
        unread = {order.relative(item["filename"]) for item in items if item["code"] != _RULE}
    except UNREADABLE as error:
        return broken(name, f"its report could not be read: {type(error).__name__}: {error}", ran)
    if bool(found or unread) is (ran.code == 0):
        return broken(name, f"it exited with {ran.code} and named {len(found)} files", ran)
    return ScanReport(
        findings=found,
        options=tuple(options),
        status=ScanStatus.SCANNED,
        tool=name,
        took_s=ran.took_s,
        unread=tuple(sorted(unread)),
    )


def _findings(order: ScanOrder, items: Iterable[Mapping[str, Any]]) -> Iterable[Finding]:
    """One a file: what it is about is the file."""
    for path in dict.fromkeys(order.relative(item["filename"]) for item in items if item["code"] == _RULE):
        yield Finding(
            about=_RULE,
            category="style",
            fix=Fix.SAFE,
            links=(_LINK,),
            message="the file is not formatted",
            places=(Place(path=path),),
            rule=_RULE,
            severity=Severity.INFO,
            suggestion="ruff format",
            tool=RuffFormat.name,
        )

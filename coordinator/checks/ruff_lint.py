"""``ruff check`` as a discovery tool, and the fix that role ``autofix`` applies for it.

Owns one invariant: a group's own look is the scan's, for one rule in some files. What ruff says is understood by ``ruff``,
and how its fixes are applied is ``ruff_fix``'s.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.checks import ruff, ruff_fix
from coordinator.domain.finding import Fix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.checks.adapter import FixResult, FixTask, ScanOrder, TreeFiles
    from coordinator.domain.finding import ScanReport
    from coordinator.policy.grouping import TaskGroup

PYTHON_FILES: Final = ("*.py", "*.pyi", "*.ipynb")
READS: Final = (
    *PYTHON_FILES,
    "pyproject.toml",
    "ruff.toml",
    ".ruff.toml",
    "setup.cfg",
    "setup.py",
    ".gitignore",
    ".ignore",
)


class RuffLint:
    fixes = frozenset({Fix.SAFE})
    name = "ruff"
    program = "ruff"
    reads = READS
    remedy = "pip install ruff"
    stale_after_s = None
    standard = True

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        return "" if files.any(*PYTHON_FILES) else "there is no Python file"

    async def scan(self, order: ScanOrder) -> ScanReport:
        options = await asyncio.to_thread(ruff.configuration_arguments, order.tree, select=order.select)
        report = order.scratch / "report.jsonl"
        answer = await order.run(ruff.check_arguments(report, options))
        read = await asyncio.to_thread(ruff.read_report, order.tree, report, answer.ran)
        look = await asyncio.to_thread(ruff.configuration_arguments, order.tree, select=("{rule}",))
        return replace(read, options=tuple(look))

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        """``ruff`` is found on the gate's PATH, which ends in our own installation's folder. Where the rule also has findings
        that ruff cannot mend safely, the line asks whether a safe fix is left instead of whether the rule is clean.
        """
        clean = group.whole or not group.key.mechanical
        look = ["--no-fix", "--output-format", "concise"] if clean else ["--diff", "--no-unsafe-fixes"]
        return shlex.join(["ruff", "check", "--no-cache", *look, *options, "--", *group.files])

    def options_fault(self, options: Sequence[str]) -> str:
        return ruff_fix.options_fault(options)

    async def fix(self, task: FixTask) -> FixResult:
        return await ruff_fix.apply(task)

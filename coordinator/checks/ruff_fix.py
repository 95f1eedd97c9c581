"""Applies the fixes that ruff itself calls safe to some files of a tree.

Owns one invariant: what changes is what ``ruff check --fix`` did to the files it was given, formatted again only where they
were formatted before. Nothing is committed here, and what led there is ``fleet.autofix``'s.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks import ruff
from coordinator.checks.adapter import FixResult
from coordinator.checks.locate import environments_of
from coordinator.checks.tool import find_tool, run_tool, tool_environment
from coordinator.domain.errors import ToolFailed
from coordinator.kit.process import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.checks.adapter import FixTask
    from coordinator.checks.tool import ToolRun

_FLAGS: Final = frozenset({"--isolated", "--no-respect-gitignore"})
_OUTPUT_BYTES: Final = 64 * 1024 * 1024
_TIMEOUT_S: Final = 240.0
_VALUED: Final = frozenset({"--ignore", "--select", "--target-version"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeFix:
    """One finding that ruff can mend safely."""

    line: int
    message: str
    path: str
    rule: str


async def fixable(tree: Path, scratch: Path, checkout: Path | None, options: Sequence[str]) -> list[str]:
    """Files of the tree in which ruff has something to mend safely."""
    fixes = await RuffProgram(tree, scratch, checkout).look(None, options)
    return sorted({fix.path for fix in fixes})


async def apply(task: FixTask) -> FixResult:
    """Mend ``task.files`` in the tree."""
    tree, options = task.tree, task.options
    tool = RuffProgram(tree, task.scratch, task.checkout)
    fixes = [
        fix for fix in await tool.look(task.files, options) if fix.path in task.files and is_within(tree, fix.path)
    ]
    files = sorted({fix.path for fix in fixes})
    if not files:
        what = f"for {', '.join(task.rules)}" if task.rules else "for the project's rules"
        return FixResult(nothing=f"nothing to fix: ruff offers no safe fix {what} in the task's files")
    before = {path: (tree / path).read_bytes() for path in files}
    tidy = [path for path in files if await tool.is_formatted(path, options)]
    whole = ruff.configuration_arguments(tree)
    known = Counter((fix.path, fix.rule) for fix in await tool.look(files, whole))
    await tool.fix(files, options)
    fixes += await _clean_up(tool, options, known, await tool.look(files, whole))
    changed = [path for path in files if (tree / path).read_bytes() != before[path]]
    if not changed:
        return FixResult(nothing="nothing was fixed: ruff offered a fix and then did not apply it")
    await tool.format([path for path in changed if path in tidy], options)
    done = [fix for fix in fixes if fix.path in changed]
    counts = Counter(fix.rule for fix in done)
    what = ", ".join(f"{number} × {rule}" for rule, number in sorted(counts.items()))
    return FixResult(done=_lines(done), files=tuple(changed), headline=_headline(done, changed), told=f"fixed {what}")


async def _clean_up(
    tool: RuffProgram, options: Sequence[str], known: Counter[tuple[str, str]], now: Sequence[SafeFix]
) -> list[SafeFix]:
    """A fix may leave something else to mend, such as the import that it made unused: mend that too, where it arose."""
    fresh = Counter((fix.path, fix.rule) for fix in now) - known
    left = [fix for fix in now if (fix.path, fix.rule) in fresh]
    if left:
        rules = sorted({fix.rule for fix in left})
        await tool.fix(sorted({fix.path for fix in left}), _with_rules(options, rules))
    return left


def _with_rules(options: Sequence[str], rules: Sequence[str]) -> list[str]:
    """The same options for other rules."""
    words = list(options)
    if "--select" in words:
        position = words.index("--select")
        del words[position : position + 2]
    return [*words, "--select", ",".join(rules)]


def options_fault(options: Sequence[str]) -> str:
    """Nothing but the choice of rules and of the Python version may come with a brief: no other files, no unsafe fixes."""
    words = iter(options)
    for word in words:
        if word in _FLAGS:
            continue
        value = next(words, "-")
        if word not in _VALUED or value.startswith("-"):
            return f"asks for an option that this agent does not use: {word}"
    return ""


def format_options(options: Sequence[str]) -> list[str]:
    """Those that the formatter knows as well."""
    kept = [word for word in options if word in _FLAGS]
    words = list(options)
    if "--target-version" in words:
        position = words.index("--target-version")
        kept += words[position : position + 2]
    return kept


def is_within(tree: Path, path: str) -> bool:
    """A file in the tree itself, not behind a link."""
    place = tree / path
    return place.is_file() and not place.is_symlink() and place.resolve().is_relative_to(tree.resolve())


class RuffProgram:
    """The ruff of the project's environment, or else ours, on one tree. Each method raises ``ToolFailed`` with what ruff
    said when it could not work."""

    def __init__(self, tree: Path, scratch: Path, checkout: Path | None) -> None:
        program = find_tool("ruff", tree=tree, first=environments_of(checkout) if checkout is not None else ())
        if program is None:
            raise ToolFailed("ruff was not found on PATH nor beside our own interpreter: pip install ruff")
        self._program = str(program)
        self._scratch = scratch
        self._tree = tree

    async def look(self, files: Sequence[str] | None, options: Sequence[str]) -> list[SafeFix]:
        """What can be mended safely in those of ``files`` that exist (None: in the whole tree)."""
        there = ["."] if files is None else [path for path in files if (self._tree / path).is_file()]
        if not there:
            return []
        report = self._scratch / "report.json"
        how = ["check", "--no-fix", "--output-format", "json", "--output-file", str(report), *options]
        await self._run(how, there, ok=(0, 1))
        try:
            return list(_safe(self._tree, json.loads(report.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ToolFailed(f"ruff's report cannot be read: {error!r}") from error

    async def fix(self, files: Sequence[str], options: Sequence[str]) -> None:
        await self._run(["check", "--fix", "--no-unsafe-fixes", "--exit-zero", "--quiet", *options], files)

    async def is_formatted(self, path: str, options: Sequence[str]) -> bool:
        ran = await self._run(["format", "--check", "--quiet", *format_options(options)], [path], ok=(0, 1, 2))
        return ran.code == 0

    async def format(self, files: Sequence[str], options: Sequence[str]) -> None:
        if files:
            await self._run(["format", "--quiet", *format_options(options)], files)

    async def _run(self, how: Sequence[str], files: Sequence[str], *, ok: Sequence[int] = (0,)) -> ToolRun:
        log = self._scratch / "log"
        ran = await run_tool(
            [self._program, *how, "--no-cache", "--", *files],
            cwd=self._tree,
            env=tool_environment(self._tree, scratch=self._scratch),
            limits=Limits(timeout_s=_TIMEOUT_S, output_bytes=_OUTPUT_BYTES),
            log=log,
        )
        if ran.problem or ran.code not in ok:
            what = ran.problem or f"exited with {ran.code}"
            raise ToolFailed(f"{ran.output.strip()}\nruff {how[0]} {what}".strip())
        return ran


def _safe(tree: Path, items: Any) -> list[SafeFix]:
    top, found = tree.resolve(), []
    for item in items:
        path = Path(item["filename"])
        if (item.get("fix") or {}).get("applicability") == "safe" and path.is_relative_to(top):
            name = path.relative_to(top).as_posix()
            found.append(SafeFix(line=item["location"]["row"], message=item["message"], path=name, rule=item["code"]))
    return found


def _headline(fixes: Sequence[SafeFix], changed: Sequence[str]) -> str:
    """``ruff: F401 in shop/orders``."""
    rules = sorted({fix.rule for fix in fixes})
    named = ", ".join(rules) if len(rules) <= 5 else f"{len(rules)} rules"
    return f"ruff: {named} in {place_of(changed)}"


def place_of(changed: Sequence[str]) -> str:
    """The file, or the folder that they all lie in."""
    place = changed[0] if len(changed) == 1 else os.path.commonpath([path.rpartition("/")[0] for path in changed])
    return place or "the top folder"


def _lines(fixes: Sequence[SafeFix]) -> tuple[str, ...]:
    return tuple(f"{fix.path}:{fix.line} {fix.rule} {' '.join(fix.message.split())}" for fix in fixes)

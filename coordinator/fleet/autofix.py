"""The command of role ``autofix``: no model, only the fixes that ruff itself calls safe, for one group of findings.

Owns one invariant: what it commits is what ``ruff check --fix`` did to the files it was given, re-formatted only where they
were formatted before. Run in the worktree with the brief on stdin. Whether the result is good the gate decides.

Exit codes: 0 committed, 1 ruff or git failed, 2 the brief cannot be followed, 3 nothing to fix.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks import ruff
from coordinator.checks.tool import find_tool, run_tool, tool_environment
from coordinator.domain.errors import CoordinatorError, PermanentError, ToolFailed
from coordinator.kit import lock
from coordinator.kit.git_command import clean_environment, failure, run_git, safety_options
from coordinator.kit.process import Limits
from coordinator.policy.change import path_matches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.checks.tool import ToolRun

FIXED: Final = 0
FAILED: Final = 1
BAD_BRIEF: Final = 2
NOTHING_TO_FIX: Final = 3

_BLOCK: Final = re.compile(r"^```coordinator-group\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_FLAGS: Final = frozenset({"--isolated", "--no-respect-gitignore"})
_LISTED: Final = 50
_OUTPUT_BYTES: Final = 64 * 1024 * 1024
_TIMEOUT_S: Final = 240.0
_VALUED: Final = frozenset({"--ignore", "--select", "--target-version"})


class BadBrief(PermanentError):
    """The brief asks for what this agent does not do."""

    exit_code = BAD_BRIEF


@dataclass(frozen=True, slots=True, kw_only=True)
class FixOrder:
    """``files`` relative to the tree (None: any that match ``paths``); ``options`` of ruff, the rules among them."""

    files: tuple[str, ...] | None
    options: tuple[str, ...]
    paths: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeFix:
    """One finding that ruff can mend safely."""

    line: int
    message: str
    path: str
    rule: str


def main() -> int:
    """Read the brief, do it, say on the last line what was done; returns the exit code."""
    brief = sys.stdin.buffer.read().decode(errors="replace")
    try:
        return asyncio.run(mend(Path.cwd(), brief, _own_order()))
    except CoordinatorError as error:
        print(error)
        return error.exit_code if isinstance(error, BadBrief) else FAILED


async def mend(tree: Path, brief: str, order: dict[str, Any]) -> int:
    """Fix and commit in ``tree`` what the brief's group names, else all safe fixes in the ``paths`` of ``order``."""
    wanted = read_brief(tree, brief) or _own_choice(tree, order)
    with tempfile.TemporaryDirectory(prefix="autofix-", dir=os.environ.get("COORDINATOR_ATTEMPT")) as scratch:
        tool = _Ruff(tree, Path(scratch))
        fixes = [fix for fix in await tool.look(wanted) if _is_wanted(tree, fix.path, wanted)]
        files = sorted({fix.path for fix in fixes})
        if not files:
            print(_nothing(wanted))
            return NOTHING_TO_FIX
        before = {path: (tree / path).read_bytes() for path in files}
        tidy = [path for path in files if await tool.is_formatted(path, wanted)]
        whole = FixOrder(files=tuple(files), options=tuple(ruff.configuration_arguments(tree)))
        known = Counter((fix.path, fix.rule) for fix in await tool.look(whole))
        await tool.fix(files, wanted)
        fixes += await _clean_up(tool, wanted, known, await tool.look(whole))
        changed = [path for path in files if (tree / path).read_bytes() != before[path]]
        if not changed:
            print("nothing was fixed: ruff offered a fix and then did not apply it")
            return NOTHING_TO_FIX
        await tool.format([path for path in changed if path in tidy], wanted)
    done = [fix for fix in fixes if fix.path in changed]
    await _commit(tree, changed, _message(done, changed))
    print(_told(done, changed))
    return FIXED


async def _clean_up(
    tool: _Ruff, order: FixOrder, known: Counter[tuple[str, str]], now: Sequence[SafeFix]
) -> list[SafeFix]:
    """A fix may leave something else to mend, such as the import that it made unused: mend that too, where it arose."""
    fresh = Counter((fix.path, fix.rule) for fix in now) - known
    left = [fix for fix in now if (fix.path, fix.rule) in fresh]
    if left:
        rules = sorted({fix.rule for fix in left})
        await tool.fix(sorted({fix.path for fix in left}), _with_rules(order, rules))
    return left


def _with_rules(order: FixOrder, rules: Sequence[str]) -> FixOrder:
    """The same order for other rules."""
    words = list(order.options)
    if "--select" in words:
        position = words.index("--select")
        del words[position : position + 2]
    return replace(order, options=(*words, "--select", ",".join(rules)))


def read_brief(tree: Path, brief: str) -> FixOrder | None:
    """The first ``coordinator-group`` block; None when there is none. What it may ask for is a short list."""
    found = _BLOCK.search(brief)
    if found is None:
        return None
    try:
        data = json.loads(found.group(1))
        files, rules, tool = data["files"], data["rules"], data["tool"]
        options, version = data.get("options"), data.get("target_version")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadBrief(f"the coordinator-group block of the brief cannot be read: {error!r}") from error
    if tool != "ruff":
        raise BadBrief(f"this agent applies ruff's fixes, not those of {tool!r}")
    for name, value in (("files", files), ("rules", rules), ("options", options or [])):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadBrief(f"the coordinator-group block's {name} are not a list of texts")
    if options is None:
        options = ruff.configuration_arguments(tree, select=rules, target_version=version)
    _check_options(options)
    return FixOrder(files=tuple(files), options=tuple(options), rules=tuple(rules))


def _check_options(options: Sequence[str]) -> None:
    """Nothing but the choice of rules and of the Python version may come with a brief: no other files, no unsafe fixes."""
    words = iter(options)
    for word in words:
        if word in _FLAGS:
            continue
        value = next(words, "-")
        if word not in _VALUED or value.startswith("-"):
            raise BadBrief(f"the coordinator-group block asks for an option that this agent does not use: {word}")


def _own_choice(tree: Path, order: dict[str, Any]) -> FixOrder:
    """A person's task: the project's own rules (else a conservative set), in the paths of the task."""
    paths = tuple(path for path in order.get("paths") or () if isinstance(path, str))
    return FixOrder(files=None, options=tuple(ruff.configuration_arguments(tree)), paths=paths)


def _own_order() -> dict[str, Any]:
    folder = os.environ.get("COORDINATOR_ATTEMPT")
    return lock.read_object(Path(folder) / "order.json") or {} if folder else {}


def _is_wanted(tree: Path, path: str, order: FixOrder) -> bool:
    """In the tree itself, not behind a link, and asked for."""
    place = tree / path
    if place.is_symlink() or not place.resolve().is_relative_to(tree.resolve()):
        return False
    if order.files is not None:
        return path in order.files
    return not order.paths or any(path_matches(path, glob) for glob in order.paths)


class _Ruff:
    """Our own ruff on one tree; every method raises ``ToolFailed`` with what it said when it could not work."""

    def __init__(self, tree: Path, scratch: Path) -> None:
        program = find_tool("ruff", tree=tree, own=True)
        if program is None:
            raise ToolFailed("ruff was not found beside our own interpreter nor on PATH: pip install ruff")
        self._program = str(program)
        self._scratch = scratch
        self._tree = tree

    async def look(self, order: FixOrder) -> list[SafeFix]:
        """What can be mended safely in the files that exist."""
        files = ["."] if order.files is None else [path for path in order.files if (self._tree / path).is_file()]
        if not files:
            return []
        report = self._scratch / "report.json"
        how = ["check", "--no-fix", "--output-format", "json", "--output-file", str(report), *order.options]
        await self._run(how, files, ok=(0, 1))
        try:
            return list(_safe(self._tree, json.loads(report.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ToolFailed(f"ruff's report cannot be read: {error!r}") from error

    async def fix(self, files: Sequence[str], order: FixOrder) -> None:
        await self._run(["check", "--fix", "--no-unsafe-fixes", "--exit-zero", "--quiet", *order.options], files)

    async def is_formatted(self, path: str, order: FixOrder) -> bool:
        ran = await self._run(["format", "--check", "--quiet", *_format_options(order)], [path], ok=(0, 1, 2))
        return ran.code == 0

    async def format(self, files: Sequence[str], order: FixOrder) -> None:
        if files:
            await self._run(["format", "--quiet", *_format_options(order)], files)

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


def _format_options(order: FixOrder) -> list[str]:
    """Those of the order's options that the formatter knows as well."""
    kept = [word for word in order.options if word in _FLAGS]
    words = list(order.options)
    if "--target-version" in words:
        position = words.index("--target-version")
        kept += words[position : position + 2]
    return kept


async def _commit(tree: Path, files: Sequence[str], message: str) -> None:
    names = "\0".join(files).encode()
    await _git(tree, "add", "--pathspec-from-file=-", "--pathspec-file-nul", stdin=names)
    await _git(tree, "commit", "--quiet", "--no-verify", "-F", "-", stdin=message.encode())


async def _git(tree: Path, *words: str, stdin: bytes) -> None:
    argv = ("git", *safety_options(hooks=False), "--literal-pathspecs", *words)
    output = await run_git(argv, cwd=tree, env=clean_environment(), timeout_s=_TIMEOUT_S, stdin=stdin)
    if output.code:
        raise failure(argv, output)


def _message(fixes: Sequence[SafeFix], changed: Sequence[str]) -> str:
    """``ruff: F401 in shop/orders`` and, below, what was mended."""
    rules = sorted({fix.rule for fix in fixes})
    named = ", ".join(rules) if len(rules) <= 5 else f"{len(rules)} rules"
    place = changed[0] if len(changed) == 1 else os.path.commonpath([path.rpartition("/")[0] for path in changed])
    lines = [f"ruff: {named} in {place or 'the top folder'}", "", "Applied the fixes that ruff calls safe:", ""]
    lines += [f"- {fix.path}:{fix.line} {fix.rule} {' '.join(fix.message.split())}" for fix in fixes[:_LISTED]]
    if len(fixes) > _LISTED:
        lines.append(f"- and {len(fixes) - _LISTED} more")
    return "\n".join(lines) + "\n"


def _told(fixes: Sequence[SafeFix], changed: Sequence[str]) -> str:
    counts = Counter(fix.rule for fix in fixes)
    what = ", ".join(f"{number} × {rule}" for rule, number in sorted(counts.items()))
    return f"fixed {what} in {len(changed)} file{'s' if len(changed) > 1 else ''}"


def _nothing(order: FixOrder) -> str:
    what = f"for {', '.join(order.rules)}" if order.rules else "for the project's rules"
    where = "in the task's files" if order.files is not None or order.paths else "in the tree"
    return f"nothing to fix: ruff offers no safe fix {what} {where}"


if __name__ == "__main__":
    sys.exit(main())

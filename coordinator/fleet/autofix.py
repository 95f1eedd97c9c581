"""The command of role ``autofix``: no model, only the fixes that a tool itself calls safe, for one group of findings.

Owns one invariant: what it commits is what the tool's adapter changed in the files it was given. Run in the worktree with the
brief on stdin. How a tool's fix is applied is its adapter's (``checks``); whether the result is good the gate decides.

Exit codes: 0 committed, 1 the tool or git failed, 2 the brief cannot be followed, 3 nothing to fix.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks import ruff, ruff_fix
from coordinator.checks.adapter import FixTask
from coordinator.checks.adapters import ADAPTERS
from coordinator.domain.errors import CoordinatorError, PermanentError
from coordinator.kit import lock
from coordinator.kit.git_command import clean_environment, failure, run_git, safety_options
from coordinator.policy.change import path_matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.checks.adapter import FixResult, ToolAdapter

FIXED: Final = 0
FAILED: Final = 1
BAD_BRIEF: Final = 2
NOTHING_TO_FIX: Final = 3

_BLOCK: Final = re.compile(r"^```coordinator-group\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_LISTED: Final = 50
_TIMEOUT_S: Final = 240.0


class BadBrief(PermanentError):
    """The brief asks for what this agent does not do."""

    exit_code = BAD_BRIEF


@dataclass(frozen=True, slots=True, kw_only=True)
class FixOrder:
    """A group of findings as a brief names it: ``files`` relative to the tree, ``options`` of the tool, the rules among them."""

    files: tuple[str, ...]
    options: tuple[str, ...]
    rules: tuple[str, ...] = ()
    tool: str = "ruff"
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def main() -> int:
    """Read the brief, do it, say on the last line what was done; returns the exit code."""
    brief = sys.stdin.buffer.read().decode(errors="replace")
    try:
        return asyncio.run(mend(Path.cwd(), brief, _own_order()))
    except CoordinatorError as error:
        print(error)
        return error.exit_code if isinstance(error, BadBrief) else FAILED


async def mend(tree: Path, brief: str, order: dict[str, Any]) -> int:
    """Fix and commit in ``tree`` what the brief's group names, else all that ruff mends safely in the ``paths`` of ``order``."""
    with tempfile.TemporaryDirectory(prefix="autofix-", dir=os.environ.get("COORDINATOR_ATTEMPT")) as folder:
        scratch = Path(folder)
        wanted = read_brief(tree, brief) or await _own_choice(tree, scratch, order)
        if not wanted.files:
            print("nothing to fix: ruff offers no safe fix for the project's rules in the task's files")
            return NOTHING_TO_FIX
        task = FixTask(
            checkout=_checkout(order),
            files=wanted.files,
            options=wanted.options,
            rules=wanted.rules,
            scratch=scratch,
            tree=tree,
            versions=wanted.versions,
        )
        result = await ADAPTERS[wanted.tool].fix(task)
    if not result.files:
        print(result.nothing)
        return NOTHING_TO_FIX
    await _commit(tree, result.files, _message(result, wanted))
    print(f"{result.told} in {len(result.files)} file{'s' if len(result.files) > 1 else ''}")
    return FIXED


def read_brief(tree: Path, brief: str) -> FixOrder | None:
    """The first ``coordinator-group`` block; None when there is none. What it may ask for is a short list."""
    found = _BLOCK.search(brief)
    if found is None:
        return None
    try:
        data = json.loads(found.group(1))
        files, rules, tool = data["files"], data["rules"], data["tool"]
        options, version, versions = data.get("options"), data.get("target_version"), data.get("versions") or {}
        known = {str(package): tuple(map(str, wanted)) for package, wanted in versions.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadBrief(f"the coordinator-group block of the brief cannot be read: {error!r}") from error
    adapter = ADAPTERS.get(tool) if isinstance(tool, str) else None
    if adapter is None or not adapter.fixes:
        able = ", ".join(name for name, one in ADAPTERS.items() if one.fixes)
        raise BadBrief(f"this agent applies the fixes of {able}, not those of {tool!r}")
    for name, value in (("files", files), ("rules", rules), ("options", options or [])):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadBrief(f"the coordinator-group block's {name} are not a list of texts")
    if options is None and tool == "ruff":
        options = ruff.configuration_arguments(tree, select=rules, target_version=version)
    _check_options(adapter, options or [])
    return FixOrder(
        files=tuple(files), options=tuple(options or ()), rules=tuple(rules), tool=adapter.name, versions=known
    )


def _check_options(adapter: ToolAdapter, options: Sequence[str]) -> None:
    fault = adapter.options_fault(options)
    if fault:
        raise BadBrief(f"the coordinator-group block {fault}")


async def _own_choice(tree: Path, scratch: Path, order: dict[str, Any]) -> FixOrder:
    """A person's task: the project's own rules (else a conservative set), in the paths of the task."""
    paths = [path for path in order.get("paths") or () if isinstance(path, str)]
    options = ruff.configuration_arguments(tree)
    files = await ruff_fix.fixable(tree, scratch, _checkout(order), options)
    wanted = [path for path in files if not paths or any(path_matches(path, glob) for glob in paths)]
    return FixOrder(files=tuple(wanted), options=tuple(options))


def _checkout(order: dict[str, Any]) -> Path | None:
    place = order.get("repository")
    return Path(place) if isinstance(place, str) and place else None


def _own_order() -> dict[str, Any]:
    folder = os.environ.get("COORDINATOR_ATTEMPT")
    return lock.read_object(Path(folder) / "order.json") or {} if folder else {}


async def _commit(tree: Path, files: Sequence[str], message: str) -> None:
    names = "\0".join(files).encode()
    await _git(tree, "add", "--pathspec-from-file=-", "--pathspec-file-nul", stdin=names)
    await _git(tree, "commit", "--quiet", "--no-verify", "-F", "-", stdin=message.encode())


async def _git(tree: Path, *words: str, stdin: bytes) -> None:
    argv = ("git", *safety_options(hooks=False), "--literal-pathspecs", *words)
    output = await run_git(argv, cwd=tree, env=clean_environment(), timeout_s=_TIMEOUT_S, stdin=stdin)
    if output.code:
        raise failure(argv, output)


def _message(result: FixResult, order: FixOrder) -> str:
    """``ruff: F401 in shop/orders`` and, below, what was mended."""
    what = "Moved to versions that {} calls sound:" if order.versions else "Applied the fixes that {} calls safe:"
    lines = [result.headline, "", what.format(order.tool), ""]
    lines += [f"- {line}" for line in result.done[:_LISTED]]
    if len(result.done) > _LISTED:
        lines.append(f"- and {len(result.done) - _LISTED} more")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""Moves crates in a ``Cargo.lock`` to a version that ``cargo audit`` calls sound, by ``cargo update --precise``.

Owns one invariant: the lock files of the task are all that changes, and each holds the version that was asked for afterwards;
else all are put back. What the manifests ask for is left to people: cargo refuses a version that they do not admit.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import UNREADABLE, FixResult, walk_files
from coordinator.checks.cargo_versions import (
    is_crate,
    is_crate_version,
    is_reachable,
    latest_crate_version,
    read_lock,
)
from coordinator.checks.ruff_fix import is_within
from coordinator.checks.tool import find_tool, last_line, run_tool, tool_environment
from coordinator.domain.errors import ToolFailed
from coordinator.kit.process import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from coordinator.checks.adapter import FixTask
    from coordinator.checks.tool import ToolRun

_LOCK: Final = "Cargo.lock"
_OUTPUT_BYTES: Final = 16 * 1024 * 1024
_REFUSED: Final = re.compile(r"failed to select a version|no matching package|could not be found|not found")
_TIMEOUT_S: Final = 240.0


async def apply(task: FixTask) -> FixResult:
    """Move in ``task.files``; raises ``ToolFailed`` for a package or a version that is none, and when cargo fails."""
    for name, versions in task.versions.items():
        if not is_crate(name) or not versions or not all(map(is_crate_version, versions)):
            raise ToolFailed(f"the brief names no version to move to: {name!r:.100} {versions!r:.200}")
    locks = [path for path in task.files if path.rpartition("/")[2] == _LOCK and is_within(task.tree, path)]
    kept = await asyncio.to_thread(_locks_of, task.tree)
    done, moved = [], []
    try:
        for path in locks:
            for name, version, to in await asyncio.to_thread(_steps, task.tree / path, task.versions):
                await _update(task, path, (f"{name}@{version}", "--precise", to))
                await asyncio.to_thread(_check, task.tree / path, name, version, to)
                done.append(f"{path}: {name} {version} → {to}")
                moved.append(f"{name} {version} → {to}")
        changed = await asyncio.to_thread(_changed, task.tree, kept)
        if set(changed) - set(locks):
            raise ToolFailed(f"cargo changed {', '.join(sorted(set(changed) - set(locks)))}, which is not the task's")
    except ToolFailed:
        await asyncio.to_thread(_put_back, task.tree, kept)
        raise
    if not changed:
        return FixResult(nothing="nothing to move: no lock file of the task has a version below the one that was named")
    steps = sorted(set(moved))
    what = ", ".join(steps) if len(steps) <= 3 else f"{len(steps)} packages"
    place = changed[0] if len(changed) == 1 else f"{len(changed)} lock files"
    return FixResult(
        done=tuple(done),
        files=tuple(changed),
        headline=f"cargo audit: {what} in {place}",
        told=f"moved {len(done)} crate{'s' if len(done) > 1 else ''}",
    )


def _locks_of(tree: Path) -> dict[str, bytes]:
    names = walk_files(tree).names
    return {name: (tree / name).read_bytes() for name in names if name.rpartition("/")[2] == _LOCK}


def _changed(tree: Path, kept: Mapping[str, bytes]) -> list[str]:
    now = _locks_of(tree)
    return sorted(name for name in now.keys() | kept.keys() if now.get(name) != kept.get(name))


def _put_back(tree: Path, kept: Mapping[str, bytes]) -> None:
    for name in _changed(tree, kept):
        if name in kept:
            (tree / name).write_bytes(kept[name])
        else:
            (tree / name).unlink()


def _steps(lock: Path, versions: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """Package, version and where to, of those that one of the named versions mends."""
    steps = []
    try:
        locked = read_lock(lock.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise ToolFailed(f"{lock.name} cannot be read: {error}") from error
    for one in locked:
        near = [to for to in versions.get(one.name, ()) if is_reachable(to, one.version)]
        if near:
            steps.append((one.name, one.version, latest_crate_version(near)))
    return steps


def _check(lock: Path, name: str, version: str, to: str) -> None:
    """Raises ``ToolFailed`` unless the lock file now has the new version and no longer the old one."""
    there = {one.version for one in read_lock(lock.read_text(encoding="utf-8")) if one.name == name}
    if to not in there or version in there:
        raise ToolFailed(
            f"cargo update left {name} at {', '.join(sorted(there))}: is this the lock file of its workspace?"
        )


async def _update(task: FixTask, path: str, words: Sequence[str]) -> None:
    """First with what was fetched before, then with the registry."""
    first = await _cargo(task, path, ["update", "--offline", *words])
    if not first.problem and first.code == 0:
        return
    ran = await _cargo(task, path, ["update", *words])
    if ran.problem or ran.code:
        said = _error(ran) or _error(first) or "it said nothing"
        why = "does not take that version" if _REFUSED.search(ran.output) else ran.problem or f"exited with {ran.code}"
        raise ToolFailed(f"cargo update {' '.join(words)} {why}: {said}")


async def _cargo(task: FixTask, path: str, words: Sequence[str]) -> ToolRun:
    program = find_tool("cargo", tree=task.tree)
    if program is None:
        raise ToolFailed("cargo was not found on PATH")
    own = {"CARGO_HTTP_TIMEOUT": "20", "CARGO_NET_RETRY": "1", "CARGO_TERM_COLOR": "never", "RUSTUP_AUTO_INSTALL": "0"}
    return await run_tool(
        [str(program), *words],
        cwd=(task.tree / path).parent,
        env={**tool_environment(task.tree, scratch=task.scratch), **own},
        limits=Limits(timeout_s=_TIMEOUT_S, output_bytes=_OUTPUT_BYTES),
        log=task.scratch / "cargo-update",
    )


def _error(ran: ToolRun) -> str:
    errors = [line.strip() for line in ran.output.splitlines() if line.strip().startswith("error")]
    return errors[0].removeprefix("error: ") if errors else last_line(ran.output)

"""Working trees of attempts as the daemon sees them: pinned before, gathered into refs after, then removed.

Owns one invariant: a working tree is removed only when every byte an agent wrote in it was seen in a ref and nothing was
written since. Agents make the trees themselves (``sdk.worktree``); git's side is ``kit.git``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from coordinator.domain.errors import ToolFailed
from coordinator.domain.task import TASK_ID
from coordinator.domain.worktree import AGENT_EMAIL, AGENT_NAME
from coordinator.kit import lock
from coordinator.kit.git import IGNORED_FILES
from coordinator.sdk.layout import base_ref, rescue_ref

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from coordinator.kit.git import Git, Snapshot
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

GONE: Final = ".gone-"
"""A tree whose content is safe is renamed to this first: half removed it could pass for an agent's deletions."""

_RESCUE: Final = "refs/coordinator/rescue/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What an attempt left, as refs of the user's repository.

    ``candidate_commit`` is on top of the base (the base itself when nothing ``changed``), None when the tree could not
    be read or never was. ``message`` is what the agent wrote in its own commits. ``rescue`` is the ref that holds
    everything, ``evidence`` the commit it must point to; both are empty when there was nothing to keep. ``complete``: the
    tree may be removed; otherwise ``note`` says what is only there. ``stamp`` is the state in which it was read. ``later``:
    the machine could not read it now (a full disk); that says nothing about the attempt.
    """

    candidate_commit: str | None
    changed: bool
    message: str
    rescue: str
    complete: bool
    note: str
    evidence: str = ""
    later: bool = False
    stamp: str = ""


def rescue_heads(task_id: str, generation: int) -> str:
    """Below it: the agent's own commits, by the names it had given them."""
    return rescue_ref(task_id, generation).replace(_RESCUE, "refs/coordinator/rescue-heads/", 1)


class Workspaces:
    """All trees below ``layout.worktrees``."""

    def __init__(self, git: Git, layout: Layout) -> None:
        self._git = git
        self._layout = layout
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()
        self._kept: set[tuple[str, int]] = set()
        self._unpinned: set[str] = set()

    async def pin(self, pairs: Sequence[tuple[str, int, str]]) -> None:
        """Hold the base commit of each ``(task, generation, commit)`` while a clone may borrow its objects."""
        await self._git.update_refs([(base_ref(task_id, number), commit) for task_id, number, commit in pairs])

    async def collect(self, task_id: str, generation: int, base: str, *, agent: str) -> Collected:
        """Put everything the attempt left into refs. Never raises for what an agent, git or the disk did; see ``note``.

        May be called again at any time, also after the tree is gone: then the answer comes from the refs.
        """
        async with self._lock(task_id, generation):
            try:
                return await self._collect(task_id, generation, base, agent or AGENT_NAME)
            except (ToolFailed, OSError) as error:
                note = f"it could not be read: {error}"
                extra = {"action": "collect_failed", "task": task_id, "generation": generation}
                _log.warning("work of %s/%d %s", task_id, generation, note, extra=extra)
                return _nothing(complete=False, note=note, later=_is_short(error))

    async def dispose(self, task_id: str, generation: int, collected: Collected) -> bool:
        """Remove the tree and unpin its base, if its content is seen in a ref and unchanged; False: it is kept."""
        async with self._lock(task_id, generation):
            try:
                return await self._dispose(task_id, generation, collected)
            except (ToolFailed, OSError) as error:
                extra = {"action": "dispose_failed", "task": task_id, "generation": generation}
                _log.warning("working tree of %s/%d kept: %s", task_id, generation, error, extra=extra)
                return False

    async def sweep(self, active: Collection[tuple[str, int]] = (), known: Mapping[str, int] | None = None) -> None:
        """Gather and remove what attempts that are over left behind: trees, half removed trees, pins.

        ``active`` attempts and those whose claim is held are left alone; a tree that had to be kept is tried once only.
        ``known`` are the newest generations that were begun, by task: pins of later ones may just have been made.
        """
        for path in await asyncio.to_thread(_children, self._layout.worktrees):
            if path.name.startswith(GONE):
                await asyncio.to_thread(remove_tree, path)
                continue
            task_id, _, number = path.name.rpartition("-")
            if not TASK_ID.fullmatch(task_id) or not re.fullmatch(r"[1-9][0-9]{0,8}", number):
                continue
            key = (task_id, int(number))
            if key in active or key in self._kept or lock.is_held(self._layout.claim_lock(task_id)):
                continue
            collected = await self.collect(*key, "", agent="")
            if not await self.dispose(*key, collected):
                self._kept.add(key)
        await self._unpin(active, known or {})

    def _lock(self, task_id: str, generation: int) -> asyncio.Lock:
        return self._locks.setdefault((task_id, generation), asyncio.Lock())

    async def _collect(self, task_id: str, generation: int, base: str, agent: str) -> Collected:
        found = await self._git.resolve(base) or await self._git.resolve(base_ref(task_id, generation))
        worktree = self._layout.worktree(task_id, generation)
        if not os.path.lexists(worktree):
            return await self._recall(task_id, generation, found)
        if found is None:
            return _nothing(complete=False, note="the commit it started from is not known any more")
        if worktree.is_symlink() or not worktree.is_dir():
            note = "the working tree was replaced by something that is no folder; it was not followed"
            return _nothing(complete=False, note=note)
        imported = await self._git.import_commits(worktree, found)
        snapshot = await self._git.snapshot(
            worktree,
            found,
            author=(agent, AGENT_EMAIL),
            message=f"Attempt {task_id}/{generation} by {agent}",
            head=imported.commits.get("HEAD"),
        )
        evidence = await self._secure(task_id, generation, snapshot, imported.commits)
        notes = [*([] if imported.complete else [imported.note]), *([] if snapshot.complete else snapshot.skipped[:3])]
        return Collected(
            candidate_commit=snapshot.commit or None,
            changed=snapshot.changed,
            message="\n\n".join(snapshot.messages),
            rescue=rescue_ref(task_id, generation) if evidence else "",
            complete=snapshot.complete and imported.complete,
            note="; ".join(notes),
            evidence=evidence,
            stamp=snapshot.stamp,
        )

    async def _secure(self, task_id: str, generation: int, snapshot: Snapshot, own: Mapping[str, str]) -> str:
        """Set the refs, all or none; what an earlier collect had put under the same name stays reachable."""
        heads = rescue_heads(task_id, generation)
        changes = [(f"{heads}/{_slug(name)}-{oid[:12]}", oid) for name, oid in own.items()]
        rescue = rescue_ref(task_id, generation)
        tip = snapshot.kept or (snapshot.commit if snapshot.changed else "")
        if tip:
            old = await self._git.resolve(rescue)
            if old is not None and await self._git.tree_of(old) != await self._git.tree_of(tip):
                changes.append((f"{heads}/earlier-{old[:12]}", old))
            changes.append((rescue, tip))
        await self._git.update_refs(changes)
        return tip

    async def _recall(self, task_id: str, generation: int, base: str | None) -> Collected:
        """The answer of an earlier collect, after which the tree was removed."""
        rescue = rescue_ref(task_id, generation)
        tip = await self._git.resolve(rescue)
        if tip is None:
            known = base if os.path.lexists(self._layout.attempt(task_id, generation) / "result.json") else None
            return _nothing(complete=True, note="it left no working tree", commit=known)
        subject = (await self._git.run("log", "-1", "--format=%s", tip)).stdout.decode(errors="replace").strip()
        commit = (await self._git.resolve(f"{tip}^") or tip) if subject == IGNORED_FILES else tip
        base = base or await self._git.resolve(f"{commit}^") or commit
        prefix = f"{rescue_heads(task_id, generation)}/HEAD-"
        own = await self._git.refs(rescue_heads(task_id, generation))
        head = next((oid for name, oid in own.items() if name.startswith(prefix)), None)
        messages = await self._git.messages(base, head) if head else ()
        return Collected(
            candidate_commit=commit,
            changed=commit != base,
            message="\n\n".join(messages),
            rescue=rescue,
            complete=True,
            note="",
            evidence=tip,
        )

    async def _dispose(self, task_id: str, generation: int, collected: Collected) -> bool:
        if not collected.complete:
            return False
        worktree = self._layout.worktree(task_id, generation)
        if os.path.lexists(worktree):
            if not await self._is_safe(task_id, generation, collected, worktree):
                return False
            gone = worktree.with_name(f"{GONE}{worktree.name}")
            await asyncio.to_thread(remove_tree, gone)
            worktree.rename(gone)
            await asyncio.to_thread(remove_tree, gone)
        await self._git.update_refs([(base_ref(task_id, generation), "")])
        return True

    async def _is_safe(self, task_id: str, generation: int, collected: Collected, worktree: Path) -> bool:
        """Look again, now: the ref is where it was put, its objects are there, and nothing was written since."""
        base = await self._git.resolve(f"{collected.candidate_commit}^") if collected.changed else None
        base = base or collected.candidate_commit
        if not base or not collected.stamp or await self._git.stamp(worktree, base) != collected.stamp:
            return False
        if not collected.evidence:
            return True
        if await self._git.resolve(rescue_ref(task_id, generation)) != collected.evidence:
            return False
        span = ("rev-list", "--objects", "--quiet", collected.evidence, f"^{base}")
        return (await self._git.run(*span, ok=(0, 128))).code == 0

    async def _unpin(self, active: Collection[tuple[str, int]], known: Mapping[str, int]) -> None:
        """Drop pins of attempts that are over; of those that never began only when they were seen idle twice."""
        wanted = {base_ref(task_id, generation) for task_id, generation in (*active, *self._kept)}
        idle = set(await self._git.refs("refs/coordinator/base")) - wanted
        newest = {base_ref(task_id, generation).rpartition("/")[0]: generation for task_id, generation in known.items()}
        over = {ref for ref in idle if _generation_of(ref) <= newest.get(ref.rpartition("/")[0], 0)}
        await self._git.update_refs([(ref, "") for ref in sorted(over | (idle & self._unpinned))])
        self._unpinned = idle


def _generation_of(ref: str) -> int:
    number = ref.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def _nothing(*, complete: bool, note: str, commit: str | None = None, later: bool = False) -> Collected:
    return Collected(
        candidate_commit=commit, changed=False, message="", rescue="", complete=complete, note=note, later=later
    )


_SHORTAGES: Final = frozenset({errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})


def _is_short(error: Exception) -> bool:
    """Whether the machine was short of something: by its number, or in the words that git passes on."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        return True
    said = str(error)
    return any(os.strerror(number) in said for number in _SHORTAGES) or "Out of diskspace" in said


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "unnamed"


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def remove_tree(path: Path) -> None:
    """Remove a tree that may have folders without write permission; never follows a link. What resists is left."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    _open_up(path)
    for folder, folders, _ in os.walk(path):
        for name in folders:
            _open_up(os.path.join(folder, name))
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _log.warning("could not remove all of %s", path, extra={"action": "worktree_remains", "path": str(path)})


def _open_up(path: Path | str) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.chmod(path, stat.S_IRWXU)

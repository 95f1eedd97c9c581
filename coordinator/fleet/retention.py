"""Gives disk space back: folders of ended attempts, homes of settled tasks, rescue refs of what has landed.

Owns one invariant: work is given up only when it is in the history of the target branch; what did not land keeps its rescue
ref for ever. Which folders go is ``policy.retention``'s decision; working trees are ``workspace``'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import ToolFailed
from coordinator.domain.event import SpaceReclaimed
from coordinator.domain.task import ACTIVE, SETTLED, TASK_ID
from coordinator.fleet.admission import Admission
from coordinator.fleet.workspace import GONE, remove_tree, rescue_heads
from coordinator.kit import lock, process
from coordinator.policy import retention
from coordinator.policy.retention import HOME, Remains
from coordinator.sdk.layout import rescue_ref

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.settings import Settings
    from coordinator.fleet.ledger import Ledger
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

_DAY_S: Final = 86_400.0
_PRESSED_S: Final = 600.0
"""While the disk is short, space is looked for this often: what could be given up has been, the first time."""
_REFS: Final = 500
"""Rescue refs looked at per run; there is another one tomorrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    bytes: int
    generation: int
    path: Path
    task: str
    touched_at: float


class Retention:
    """``look_again`` is called by a tick."""

    def __init__(self, layout: Layout, ledger: Ledger, git: Git, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._admission = Admission(layout.state, settings.fleet)
        self._bus = bus
        self._clock = clock
        self._git = git
        self._layout = layout
        self._ledger = ledger
        self._settings = settings
        self._ran_at: float | None = None

    async def look_again(self) -> None:
        """Once a day, and sooner when the disk is so full that nothing is started any more."""
        now = self._clock.monotonic()
        since = _DAY_S if self._ran_at is None else now - self._ran_at
        if since >= _DAY_S or (since >= _PRESSED_S and self._admission.short_of_disk()):
            self._ran_at = now
            await self.reclaim()

    async def reclaim(self) -> SpaceReclaimed:
        """Give up what may be, and say how much that was."""
        folders = await asyncio.to_thread(_measure, self._layout)
        now = self._clock.now().timestamp()
        newest: dict[str, int] = {}
        for folder in folders:
            newest[folder.task] = max(folder.generation, newest.get(folder.task, HOME))
        known = {self._seen(folder, newest[folder.task], now): folder for folder in folders}
        days, total = self._settings.retention.attempts_days, sum(folder.bytes for folder in folders)
        chosen = retention.choose(
            known, longest_age_s=days * _DAY_S if days else None, most_bytes=self._most_bytes(total)
        )
        gone = [one for one in chosen if await self._give_up(known[one])]
        freed = sum(one.bytes for one in gone)
        report = SpaceReclaimed(
            attempts=sum(one.generation != HOME for one in gone),
            freed_bytes=freed,
            homes=sum(one.generation == HOME for one in gone),
            kept_bytes=total - freed,
            refs=await self._drop_refs(),
        )
        if gone or report.refs:
            self._bus.publish(report)
        return report

    def _most_bytes(self, total: int) -> int | None:
        """What may stay: as much as is allowed, less while the disk is short."""
        allowed = self._settings.retention.max_bytes or None
        if not self._admission.short_of_disk():
            return allowed
        missing = self._settings.fleet.min_free_bytes - process.free_disk(self._layout.state)
        pressed = max(total - missing, 0) if missing > 0 else total // 2  # short of inodes: nobody counts those
        return pressed if allowed is None else min(allowed, pressed)

    def _seen(self, folder: _Folder, newest: int, now: float) -> Remains:
        entry = self._ledger.find(folder.task)
        mine = entry is not None and (folder.generation in (HOME, entry.generation))
        return Remains(
            active=entry is not None and entry.state in ACTIVE and mine,
            age_s=max(now - folder.touched_at, 0.0),
            bytes=folder.bytes,
            generation=folder.generation,
            newest=folder.generation in (HOME, newest),
            settled=entry is not None and entry.state in SETTLED,
            task=folder.task,
        )

    async def _give_up(self, folder: _Folder) -> bool:
        """Look again, now: it is renamed in the same breath, so that no attempt begins in what is half removed."""
        entry = self._ledger.find(folder.task)
        mine = entry is not None and folder.generation in (HOME, entry.generation)
        if entry is not None and mine and entry.state not in SETTLED:
            return False
        if lock.is_held(self._layout.claim_lock(folder.task)):
            return False
        gone = folder.path.with_name(f"{GONE}{folder.path.name}")
        try:
            await asyncio.to_thread(remove_tree, gone)
            folder.path.rename(gone)
        except OSError as error:
            extra = {"action": "reclaim_failed", "path": str(folder.path)}
            _log.warning("%s is kept: %s", folder.path, error, extra=extra)
            return False
        await asyncio.to_thread(remove_tree, gone)
        if folder.generation != HOME:
            _remove_if_empty(folder.path.parent)
        return True

    async def _drop_refs(self) -> int:
        """Rescue refs of attempts that landed long ago, as long as their commit is still in the target's history."""
        days = self._settings.retention.rescue_days
        if not days:
            return 0
        target, dropped = f"refs/heads/{self._settings.land.target}", 0
        before = self._clock.now() - timedelta(days=days)
        for task, generation in self._ledger.landed_before(before)[:_REFS]:
            entry = self._ledger.find(task)
            try:
                if entry is None or not entry.commit or not await self._git.is_ancestor(entry.commit, target):
                    continue
                heads = await self._git.refs(rescue_heads(task, generation))
                await self._git.update_refs([(ref, "") for ref in (rescue_ref(task, generation), *heads)])
                self._ledger.record(task, generation, rescue="")
                dropped += 1
            except ToolFailed as error:
                extra = {"action": "reclaim_failed", "task": task, "generation": generation}
                _log.warning("rescue ref of %s/%d is kept: %s", task, generation, error, extra=extra)
        return dropped


def _measure(layout: Layout) -> list[_Folder]:
    """Folders of attempts and homes, as they are; what is no folder of ours is left alone. Half removed ones are removed."""
    found = []
    for path in _folders(layout.attempts):
        for attempt in _folders(path):
            if attempt.name.isdecimal() and attempt.name.isascii() and int(attempt.name) > HOME:
                found.append(_sized(attempt, path.name, int(attempt.name)))
    found += [_sized(path, path.name, HOME) for path in _folders(layout.homes)]
    return [folder for folder in found if TASK_ID.fullmatch(folder.task)]


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    for name in names:
        if name.startswith(GONE):
            remove_tree(path / name)
    return [path / name for name in sorted(names) if not name.startswith(GONE)]


def _sized(path: Path, task: str, generation: int) -> _Folder:
    """What it takes on the disk, and when anything in it was written last; links are not followed."""
    size, touched_at, todo = 0, 0.0, [str(path)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    size += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(entry.path)
                    else:
                        touched_at = max(touched_at, status.st_mtime)
        except OSError:
            continue
    return _Folder(bytes=size, generation=generation, path=path, task=task, touched_at=touched_at or _mtime(path))


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        _log.debug("%s has more in it", path, extra={"action": "folder_kept"})

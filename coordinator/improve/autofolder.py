"""The folder of task files that discovery writes: ``auto/`` below the spool.

Owns one invariant: only regular files that begin with our mark are ever replaced or removed; whatever else lies there, or
lies there under a name we wanted, is somebody's own. Files appear and change whole, whatever is killed meanwhile.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.improve import autotask
from coordinator.kit import files, lock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from coordinator.policy.grouping import AutoTask

_LARGEST_BYTES: Final = 1024 * 1024
_LEFT_OVER: Final = re.compile(r"\.coordinator-\w+\.tmp|\.[a-z0-9._-]+\.toml\.\d+-[0-9a-f]{8}\.tmp")
"""Temporary files of a writer that was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoFiles:
    """``ours`` by task id, ``damaged`` ids whose file has our mark but cannot be read, ``taken`` names of others."""

    damaged: frozenset[str]
    ours: Mapping[str, AutoTask]
    taken: frozenset[str]


class AutoFolder:
    """Used by one daemon at a time; raises ``OSError`` when the folder cannot be read or written."""

    def __init__(self, spool: Path) -> None:
        self._folder = spool / "auto"

    def read(self) -> AutoFiles:
        """What lies in the folder; left-overs of a killed writer are cleared away."""
        ours: dict[str, AutoTask] = {}
        damaged: set[str] = set()
        taken: set[str] = set()
        for entry in self._entries():
            task_id = entry.name.removesuffix(".toml")
            if _LEFT_OVER.fullmatch(entry.name):
                os.unlink(entry.path)
            elif entry.name.endswith(".toml"):
                text = _marked_text(entry.path)
                task = autotask.read(text, task_id) if text else None
                if task is not None:
                    ours[task_id] = task
                else:
                    (damaged if text else taken).add(task_id)
        return AutoFiles(ours=ours, damaged=frozenset(damaged), taken=frozenset(taken))

    def write(self, task_id: str, text: str) -> bool:
        """Create the file or replace ours; False, and nothing done, when a stranger's has the name."""
        self._make()
        path = self._folder / f"{task_id}.toml"
        if _marked_text(path):
            lock.write_atomic(path, text.encode())
            return True
        try:
            files.write_new(path, text)
        except FileExistsError:
            return False
        return True

    def remove(self, task_id: str) -> bool:
        """Remove the file if it is ours."""
        path = self._folder / f"{task_id}.toml"
        if not _marked_text(path):
            return False
        path.unlink(missing_ok=True)
        return True

    def _entries(self) -> list[os.DirEntry[str]]:
        if self._folder.is_symlink():
            raise NotADirectoryError(
                f"{self._folder} is a symbolic link; discovery writes into a folder of its own only"
            )
        try:
            with os.scandir(self._folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return []

    def _make(self) -> None:
        """The folder ignores itself: what we write is no change of the user's repository."""
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.write_atomic(self._folder / ".gitignore", b"*\n")


def _marked_text(path: Path | str) -> str:
    """The text of a regular file that begins with our mark; empty for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        with open(fd, "rb", closefd=False) as file:
            text = file.read(_LARGEST_BYTES).decode(errors="replace")
    finally:
        os.close(fd)
    return text if text.startswith(autotask.MARK) else ""

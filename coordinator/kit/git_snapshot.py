"""Reads a working tree that an agent wrote into the user's repository, as trees.

Owns one invariant: git is never run where an agent's configuration counts. ``git add -A`` is not used, not even with the
user's git folder: it runs ``git status`` inside a submodule that the agent filled, and with it what is configured there.
So the files are listed by us, and git is given their names. No ref moves here and the working tree is only read.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.kit.git_listing import Lister, Listing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from coordinator.kit.git_command import GitCommand

_MOST_IGNORED_BYTES: Final = 50 * 1024 * 1024
_MOST_NEW_BYTES: Final = 2 * 1024 * 1024 * 1024
_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTreeReading:
    """``tree`` is empty when nothing could be read; ``kept_tree`` is empty when there are no ignored files to keep."""

    tree: str = ""
    kept_tree: str = ""
    complete: bool
    skipped: tuple[str, ...]
    stamp: str = ""


class _Index:
    """A private index of the user's repository over somebody's working tree."""

    def __init__(self, git: GitCommand, folder: str, worktree: Path) -> None:
        self._git = git
        self._env = {"GIT_INDEX_FILE": os.path.join(folder, "index"), "GIT_WORK_TREE": str(worktree)}

    async def run(self, *args: str, names: Iterable[bytes] = (), ok: tuple[int, ...] = (0,)) -> bytes:
        stdin = b"".join(name + b"\0" for name in names)
        # safecrlf would refuse files with mixed line ends; here nothing may be refused
        words = ("-c", "core.safecrlf=false", *args)
        return (await self._git.run(*words, stdin=stdin, env=self._env, timeout_s=_TIMEOUT_S, ok=ok)).stdout

    async def ignored(self, names: list[bytes]) -> set[bytes]:
        if not names:
            return set()
        answer = await self.run("check-ignore", "-z", "--stdin", names=names, ok=(0, 1))
        return set(answer.split(b"\0")) - {b""}

    async def add(self, names: Iterable[bytes]) -> None:
        await self.run("update-index", "--add", "--replace", "-z", "--stdin", names=names)

    async def remove(self, names: Iterable[bytes]) -> None:
        await self.run("update-index", "--force-remove", "-z", "--stdin", names=names)

    async def write(self) -> str:
        return (await self.run("write-tree")).decode().strip()


async def read_work_tree(git: GitCommand, worktree: Path, base: str) -> WorkTreeReading:
    """Raises ``ToolFailed`` or ``OSError`` when git or the disk fails; what an agent can do shows in the result."""
    identity = _folder_identity(worktree)
    if isinstance(identity, str):
        return WorkTreeReading(complete=False, skipped=(identity,))
    with tempfile.TemporaryDirectory(prefix="coordinator-index-") as folder:
        index = _Index(git, folder, worktree)
        listing, tracked, gitlinks = await _list(git, index, worktree, base)
        await index.remove(_gone(listing, os.fsencode(worktree), tracked, gitlinks))
        new = [name for name in listing.files if name not in tracked]
        ignored = await index.ignored(new)
        _drop_excess(listing, [name for name in new if name not in ignored], _MOST_NEW_BYTES, "new")
        _drop_excess(listing, list(ignored), _MOST_IGNORED_BYTES, "ignored")
        await index.add(sorted(name for name in listing.files if name not in ignored))
        tree = await index.write()
        kept = sorted(name for name in ignored if name in listing.files)
        await index.add(kept)
        kept_tree = await index.write() if kept else ""
    if _folder_identity(worktree) != identity:
        return WorkTreeReading(complete=False, skipped=("the working tree was replaced while it was read",))
    return WorkTreeReading(
        tree=tree,
        kept_tree=kept_tree,
        complete=listing.complete,
        skipped=tuple(listing.skipped),
        stamp=listing.stamp,
    )


async def tree_stamp(git: GitCommand, worktree: Path, base: str) -> str:
    """The ``stamp`` a reading would have now: different as soon as a file was written, added or removed."""
    if isinstance(_folder_identity(worktree), str):
        return ""
    with tempfile.TemporaryDirectory(prefix="coordinator-index-") as folder:
        listing, _, _ = await _list(git, _Index(git, folder, worktree), worktree, base)
    return listing.stamp


async def _list(git: GitCommand, index: _Index, worktree: Path, base: str) -> tuple[Listing, set[bytes], set[bytes]]:
    """What lies in the tree, and the files and submodules of ``base``, which the index then holds."""
    await index.run("read-tree", base)
    tracked, gitlinks = await _base_files(git, base)
    lister = Lister(os.fsencode(worktree), tracked, gitlinks)
    doubtful = await asyncio.to_thread(lister.first)
    left_out = await index.ignored([name + b"/" for name in doubtful])
    rest = [name for name in doubtful if name + b"/" not in left_out]
    return await asyncio.to_thread(lister.second, rest), tracked, gitlinks


def _folder_identity(worktree: Path) -> tuple[int, int] | str:
    """Device and inode of a real folder, or why it is none."""
    try:
        found = worktree.lstat()
    except OSError as error:
        return f"the working tree is not there ({error.strerror})"
    if not stat.S_ISDIR(found.st_mode):
        return "the working tree was replaced by something that is no folder; it was not followed"
    return found.st_dev, found.st_ino


async def _base_files(git: GitCommand, base: str) -> tuple[set[bytes], set[bytes]]:
    tracked: set[bytes] = set()
    gitlinks: set[bytes] = set()
    for line in (await git.run("ls-tree", "-r", "-z", base)).stdout.split(b"\0")[:-1]:
        (gitlinks if line.startswith(b"160000 ") else tracked).add(line.partition(b"\t")[2])
    return tracked, gitlinks


def _gone(listing: Listing, root: bytes, tracked: set[bytes], gitlinks: set[bytes]) -> list[bytes]:
    """What the base has and the tree has not; where we could not look, the base's version stays."""
    gone = (tracked - listing.files.keys()) | (gitlinks - listing.submodules)
    if listing.unread:
        gone = {name for name in gone if not _below(name, listing.unread)}
    if listing.truncated:
        gone = {name for name in gone if not os.path.lexists(os.path.join(root, name))}
    return sorted(gone)


def _below(name: bytes, folders: set[bytes]) -> bool:
    if name in folders or b"" in folders:
        return True
    return any(name[:at] in folders for at, byte in enumerate(name) if byte == 0x2F)


def _drop_excess(listing: Listing, names: list[bytes], most_bytes: int, kind: str) -> None:
    """Keep the smallest files up to ``most_bytes``; the rest makes the reading incomplete."""
    total = 0
    for name in sorted(names, key=lambda name: (listing.files[name], name)):
        total += listing.files[name]
        if total > most_bytes:
            del listing.files[name]
            listing.lose(name, f"does not fit into the {most_bytes >> 20} MiB kept of {kind} files")

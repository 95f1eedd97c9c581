"""What lies in a folder that somebody else wrote, listed without following or opening anything.

Owns one invariant: every entry is in the listing as a file, as a named omission that leaves nothing behind, or as a
named omission that makes the listing incomplete. Names are bytes relative to the root, as git has them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

_CACHES: Final = frozenset({b".hypothesis", b".mypy_cache", b".pytest_cache", b".ruff_cache"})
"""Left out wherever the base commit has nothing in them: tools remake them, and no person writes there."""

_IGNORED_CACHES: Final = frozenset({b".nox", b".tox", b".venv", b"node_modules", b"target", b"venv"})
"""Left out only where .gitignore says so: the names alone prove nothing."""

_LARGEST_FILE_BYTES: Final = 512 * 1024 * 1024
_MOST_NEW_FILES: Final = 100_000
_LONGEST_PATH_BYTES: Final = 4000


@dataclass(slots=True, kw_only=True)
class Listing:
    """``files`` maps names of files and symlinks to their size. ``unread`` are folders that could not be listed."""

    files: dict[bytes, int] = field(default_factory=dict)
    submodules: set[bytes] = field(default_factory=set)
    unread: set[bytes] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)
    complete: bool = True
    truncated: bool = False
    stamp: str = ""

    def lose(self, name: bytes, why: str) -> None:
        """Something is here that will not be in the snapshot."""
        self.complete = False
        self.omit(name, why)

    def omit(self, name: bytes, why: str) -> None:
        """Something is here that has no content to keep."""
        if len(self.skipped) < 50:
            self.skipped.append(f"{name.decode('utf-8', 'backslashreplace') or 'the working tree'}: {why}")


class Lister:
    """Lists one root. ``tracked`` are the base's files, ``gitlinks`` its submodules."""

    def __init__(self, root: bytes, tracked: Collection[bytes], gitlinks: Collection[bytes]) -> None:
        self._root = root
        self._tracked = tracked
        self._gitlinks = gitlinks
        self._parents = {name[:at] for name in tracked for at in _slashes(name)}
        self._listing = Listing()
        self._new = 0
        self._prints: list[bytes] = []

    def first(self) -> list[bytes]:
        """List everything but the folders returned: caches by their names, if .gitignore says so."""
        return self._walk([b""], ask=True)

    def second(self, folders: list[bytes]) -> Listing:
        """List these folders as well; the whole listing."""
        self._walk(folders, ask=False)
        self._listing.stamp = hashlib.sha256(b"\0".join(sorted(self._prints))).hexdigest()
        return self._listing

    def _walk(self, folders: list[bytes], *, ask: bool) -> list[bytes]:
        listing, doubtful = self._listing, list[bytes]()
        while folders and not listing.truncated:
            folder = folders.pop()
            try:
                with os.scandir(os.path.join(self._root, folder)) as entries:
                    found = list(entries)
            except OSError as error:
                listing.unread.add(folder)
                listing.lose(folder, f"cannot be listed ({error.strerror})")
                continue
            if folder in self._gitlinks and self._is_submodule(folder, found, listing):
                continue
            for entry in found:
                name = os.path.join(folder, entry.name)
                if entry.name.lower() == b".git":
                    if folder:
                        listing.lose(folder, "has a repository of its own, whose history is only here")
                elif len(name) > _LONGEST_PATH_BYTES:
                    listing.lose(folder, "is nested too deeply")
                elif not entry.is_dir(follow_symlinks=False):
                    self._file(name, entry, listing)
                elif self._plain_cache(name, entry.name):
                    continue
                elif ask and entry.name in _IGNORED_CACHES and name not in self._parents:
                    doubtful.append(name)
                else:
                    folders.append(name)
        return doubtful

    def _is_submodule(self, folder: bytes, found: list[os.DirEntry[bytes]], listing: Listing) -> bool:
        """A submodule's folder is empty in our clones; if it was filled as a repository it stays the base's link."""
        if found and all(entry.name.lower() != b".git" for entry in found):
            return False
        listing.submodules.add(folder)
        if found:
            listing.lose(folder, "is a submodule that was filled; its content is only here")
        return True

    def _plain_cache(self, name: bytes, last: bytes) -> bool:
        return last in _CACHES and name not in self._parents

    def _file(self, name: bytes, entry: os.DirEntry[bytes], listing: Listing) -> None:
        if name not in self._tracked:
            if name.endswith(b".pyc"):
                return
            self._new += 1
            if self._new > _MOST_NEW_FILES:
                listing.truncated = True
                listing.lose(name, f"is one of more than {_MOST_NEW_FILES} new files; the rest was not read")
                return
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError as error:
            listing.unread.add(name)
            listing.lose(name, f"cannot be looked at ({error.strerror})")
            return
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            listing.omit(name, "is no file, folder or link")
        elif found.st_size > _LARGEST_FILE_BYTES:
            listing.unread.add(name)
            listing.lose(name, f"is larger than {_LARGEST_FILE_BYTES} bytes")
        elif stat.S_ISREG(found.st_mode) and not os.access(os.path.join(self._root, name), os.R_OK):
            listing.unread.add(name)
            listing.lose(name, "cannot be read")
        else:
            listing.files[name] = found.st_size
            self._prints.append(b"%s %d %d %d" % (name, found.st_size, found.st_mtime_ns, found.st_ino))


def _slashes(name: bytes) -> list[int]:
    return [at for at, byte in enumerate(name) if byte == 0x2F]

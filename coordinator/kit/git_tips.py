"""The names in an agent's ``.git``, read as what they are: small text files that somebody else wrote.

Owns one invariant: no link is followed, no fifo waited for, no file read beyond a bound, and no git is run.
What the names point to is ``git_import``'s business.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_OID: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NOTHING: Final = re.compile(r"0+")
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_REFS: Final = 200
_MOST_REFLOG: Final = 500
_DEEPEST: Final = 12


@dataclass(slots=True, kw_only=True)
class Tips:
    """``named``: ref name without ``refs/`` (or HEAD) → object. ``reflog``: where HEAD and the stash have been."""

    named: dict[str, str] = field(default_factory=dict)
    reflog: list[str] = field(default_factory=list)
    complete: bool = True
    note: str = ""

    def doubt(self, note: str) -> None:
        self.complete = False
        self.note = self.note or note


def read_tips(worktree: Path) -> Tips | str:
    """A sentence when ``.git`` is gone or no real folder. Raises ``OSError`` when it cannot be read."""
    path = worktree / ".git"
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return "its .git is gone; the files were read all the same"
    if not stat.S_ISDIR(kind):
        return "its .git is no folder and was not followed; the files were read all the same"
    folder = os.open(path, _FLAGS | os.O_DIRECTORY)
    try:
        return _read_folder(folder)
    finally:
        os.close(folder)


def _read_folder(folder: int) -> Tips:
    tips = Tips()
    if "reftable" in os.listdir(folder):
        tips.doubt("its refs are in a format that is not read here (reftable)")
    for line in _text(folder, "packed-refs", 8 * 1024 * 1024, tips).splitlines():
        oid, _, name = line.partition(" ")
        if _OID.fullmatch(oid) and name.startswith("refs/"):
            tips.named[name.removeprefix("refs/")] = oid
    _walk(folder, "refs", "", tips, 0)
    head = _text(folder, "HEAD", 4096, tips).strip()
    if _OID.fullmatch(head):
        tips.named["HEAD"] = head
    elif head.startswith("ref: refs/"):
        target = tips.named.get(head.removeprefix("ref: refs/"))
        if target:
            tips.named["HEAD"] = target
    else:
        tips.doubt("its HEAD is not readable")
    seen: dict[str, None] = {}
    for name in ("refs/stash", "HEAD"):
        for line in reversed(_reflog(folder, name, tips).splitlines()):
            oid = line.split(" ", 2)[1] if line.count(" ") > 1 else ""
            if _OID.fullmatch(oid) and not _NOTHING.fullmatch(oid):
                seen.setdefault(oid)
    if len(seen) > _MOST_REFLOG or len(tips.named) > _MOST_REFS:
        tips.doubt(f"it has more than {_MOST_REFS} refs or {_MOST_REFLOG} reflog entries")
    tips.named = dict(sorted(tips.named.items(), key=lambda pair: (pair[0] != "HEAD", pair[0]))[:_MOST_REFS])
    tips.reflog = list(seen)[:_MOST_REFLOG]
    return tips


def _reflog(folder: int, name: str, tips: Tips) -> str:
    return _text(folder, f"logs/{name}", 4 * 1024 * 1024, tips)


def _walk(parent: int, name: str, prefix: str, tips: Tips, depth: int) -> None:
    try:
        here = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=parent)
    except OSError:
        tips.doubt(f"its folder {prefix or 'refs'} is not readable")
        return
    try:
        for entry in sorted(os.listdir(here)):
            kind = os.stat(entry, dir_fd=here, follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind) and depth < _DEEPEST:
                _walk(here, entry, f"{prefix}{entry}/", tips, depth + 1)
                continue
            text = _text(here, entry, 4096, tips).strip()
            if _OID.fullmatch(text):
                tips.named[prefix + entry] = text
            elif not entry.endswith(".lock") and not text.startswith("ref: "):
                tips.doubt(f"its ref {prefix}{entry} is not readable")
            if len(tips.named) > 10 * _MOST_REFS:
                return
    finally:
        os.close(here)


def _text(folder: int, name: str, most_bytes: int, tips: Tips) -> str:
    """The file's text; empty when there is none. Something else in its place, or too much of it, is doubted."""
    *folders, last = name.split("/")
    opened: list[int] = []
    try:
        for part in folders:
            folder = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            opened.append(folder)
        opened.append(os.open(last, _FLAGS, dir_fd=folder))
        if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
            tips.doubt(f"its {name} is no file")
            return ""
        return _bounded(opened[-1], most_bytes, name, tips)
    except FileNotFoundError:
        return ""
    except OSError as error:
        tips.doubt(f"its {name} cannot be read ({error.strerror})")
        return ""
    finally:
        for fd in opened:
            os.close(fd)


def _bounded(fd: int, most_bytes: int, name: str, tips: Tips) -> str:
    with open(fd, "rb", closefd=False) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        tips.doubt(f"its {name} is larger than {most_bytes} bytes")
    return data[:most_bytes].decode("utf-8", "replace")

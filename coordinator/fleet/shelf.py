"""The spool's files as they were last accepted, and how a change on disk becomes accepted.

Owns one invariant: a file counts only after it was left alone for a moment, and one that cannot be read keeps what it
said before. It has no thread, clock or loop of its own: ``fleet.spool`` drives it, one look at a time.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.problem import Problem
from coordinator.domain.taskfile import ParsedFile, parse
from coordinator.kit import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

SETTLE_S: Final = 0.25
"""A changed, new or missing file is believed after it stayed the same for this long: editors write in several steps."""

IMPATIENT_S: Final = 2.0
"""A file that changes all the time is believed after this long nevertheless."""

_JUST_WRITTEN_S: Final = 0.02
"""A file this young may be written again with the same time stamp (they go in steps of some ms): it is read once more."""

_NEVER: Final = files.Stamp(-1, -1, -1, -1)


@dataclass(frozen=True, slots=True)
class _Accepted:
    stamp: files.Stamp
    parsed: ParsedFile


@dataclass(frozen=True, slots=True)
class _Unsettled:
    stamp: files.Stamp | None
    since: float
    first: float


class Shelf:
    """``root`` is the spool's folder; files are named relative to the repository in everything that leaves here."""

    def __init__(self, root: Path, repository: Path) -> None:
        self._root = root
        self._base = files.shown_in(root, repository)
        self._accepted: dict[str, _Accepted] = {}
        self._unsettled: dict[str, _Unsettled] = {}
        self._scan = files.TomlScan(files={}, folders=(), odd={}, unreadable={})

    def has_folder(self, name: str) -> bool:
        """Whether the last full look met this folder (``""`` is the root)."""
        return name in self._scan.folders

    @property
    def unsettled(self) -> frozenset[str]:
        """Files that have to be looked at again soon."""
        return frozenset(self._unsettled)

    def parsed(self) -> dict[str, ParsedFile]:
        return {accepted.parsed.file: accepted.parsed for accepted in self._accepted.values()}

    def problems(self) -> list[Problem]:
        """What is wrong with the folder itself, beside the problems of its files."""
        found = [Problem(file=self._shown(name), message=reason) for name, reason in self._scan.odd.items()]
        return found + [
            Problem(file=self._shown(name), message=f"cannot be listed: {reason}")
            for name, reason in self._scan.unreadable.items()
        ]

    def unreadable(self) -> frozenset[str]:
        """Files and folders whose content is not known at the moment."""
        names = [name for name in self._unsettled if name not in self._accepted]
        return frozenset(self._shown(name) for name in (*names, *self._scan.unreadable))

    def look_at_all(self, now: float, *, wall: float | None = None) -> bool:
        """Compare everything with the disk; true when something was accepted.

        ``now`` is monotonic. With ``wall`` (epoch seconds) everything is believed at once, as it is.
        """
        before = self._scan
        self._scan = files.scan_toml(self._root)
        changed = (before.odd, before.unreadable) != (self._scan.odd, self._scan.unreadable)
        missing = [name for name in (*self._accepted, *self._unsettled) if name not in self._scan.files]
        for name in dict.fromkeys(missing):
            if not self._hidden(name):
                changed |= self._meet(name, None, now, wall)
        for name, stamp in self._scan.files.items():
            accepted = self._accepted.get(name)
            if accepted is None or accepted.stamp != stamp or name in self._unsettled:
                changed |= self._meet(name, stamp, now, wall)
        return changed

    def look_at(self, names: Iterable[str], now: float) -> bool:
        """Compare these files only. What turns out to be no regular file makes it a look at everything."""
        changed = False
        for name in names:
            try:
                status = os.lstat(self._root / name)
            except FileNotFoundError:
                changed |= self._meet(name, None, now, None)
                continue
            except OSError:
                return self.look_at_all(now)
            if not stat.S_ISREG(status.st_mode) or name in self._scan.odd:
                return self.look_at_all(now)
            changed |= self._meet(name, files.stamp_of(status), now, None)
        return changed

    def _meet(self, name: str, stamp: files.Stamp | None, now: float, wall: float | None) -> bool:
        """Take note that ``name`` has ``stamp`` (None: it is not there); true when that was accepted."""
        accepted = self._accepted.get(name)
        if stamp == (accepted.stamp if accepted is not None else None):
            self._unsettled.pop(name, None)
            return False
        seen = self._unsettled.get(name)
        if seen is None or seen.stamp != stamp:
            seen = _Unsettled(stamp, since=now, first=now if seen is None else seen.first)
            self._unsettled[name] = seen
        if wall is None and now - seen.since < SETTLE_S and now - seen.first < IMPATIENT_S:
            return False
        return self._accept(name, stamp, wall)

    def _accept(self, name: str, stamp: files.Stamp | None, wall: float | None) -> bool:
        text = files.read_text(self._root / name) if stamp is not None else files.Unread(reason="", gone=True)
        self._unsettled.pop(name, None)
        if stamp is None or (isinstance(text, files.Unread) and text.gone):
            return self._accepted.pop(name, None) is not None
        parsed = self._parse(name, text)
        if wall is not None and abs(wall - stamp.mtime_ns / 1e9) < _JUST_WRITTEN_S:
            stamp = _NEVER
        before = self._accepted.get(name)
        self._accepted[name] = _Accepted(stamp, parsed)
        return before is None or before.parsed != parsed

    def _parse(self, name: str, text: str | files.Unread) -> ParsedFile:
        shown = self._shown(name)
        if isinstance(text, str):
            parsed = parse(text, shown)
        else:
            problem = Problem(file=shown, line=text.line, message=text.reason, expected=text.expected)
            parsed = ParsedFile(file=shown, problems=(problem,), readable=False)
        before = self._accepted.get(name)
        if parsed.readable or before is None or not before.parsed.tasks:
            return parsed
        problem = replace(
            parsed.problems[0], message=f"{parsed.problems[0].message}; what it said before stays in force"
        )
        return replace(before.parsed, problems=(problem,), readable=False)

    def _hidden(self, name: str) -> bool:
        """Whether a file is below a folder that could not be listed: then it is not missing."""
        return any(_is_below(name, folder) for folder in self._scan.unreadable)

    def _shown(self, name: str) -> str:
        return f"{self._base}/{files.shown(name)}" if name else self._base


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(folder + "/")


def listed(problems: Collection[Problem], most: int) -> tuple[str, ...]:
    """The first ``most`` problems as text, and how many more there are."""
    texts = tuple(str(problem) for problem in list(problems)[:most])
    return texts if len(problems) <= most else (*texts, f"… and {len(problems) - most} more")

"""Looks at an attempt from beside it: its output, its processes, its files; writes down what it sees as ``Vitals``.

Owns one invariant: looking changes nothing and costs next to nothing (files are looked at only when all else is quiet).
What the signs mean is ``policy.health``'s.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.vitals import BUSY_CORES, Vitals
from coordinator.fleet import sighting
from coordinator.kit import lock, process

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.fleet.driver import Reader

_CHUNK_BYTES: Final = 4 * 1024 * 1024
_LONGEST_LINE_BYTES: Final = 1024 * 1024
_QUIET_S: Final = 10.0
"""Files are looked at when nothing else has moved for this long, and not more often than this."""
_MOST_ENTRIES: Final = 20_000


class Sensor:
    """``follow`` is the file whose growth is progress; with ``understood`` its lines go to the reader."""

    def __init__(self, reader: Reader, follow: Path, worktree: Path, *, understood: bool) -> None:
        now = time.monotonic()
        self._boot = lock.boot_id()
        self._reader = reader
        self._follow = follow
        self._worktree = worktree
        self._understood = understood
        self._offset = 0
        self._rest = b""
        self._cut = False
        self._cpu_at = now
        self._looked_at = now
        self._newest: int | None = None
        self._vitals = Vitals(
            boot=self._boot, busy_at=now, changed_at=now, doing_since=now, progress_at=now, seen_at=now, started_at=now
        )

    def look(self) -> Vitals:
        """One look; the caller keeps it to about one a second."""
        now = time.monotonic()
        progressed = self.read()
        used = process.usage(os.getpid())
        seen = self._reader.glimpse()
        before = self._vitals
        spent, passed = used.cpu_s - before.cpu_s, now - self._cpu_at
        busy = passed > 0 and spent / passed >= BUSY_CORES
        self._cpu_at = now
        doing = (seen.doing, seen.tool)
        self._vitals = replace(
            before,
            busy_at=now if busy else before.busy_at,
            cost_usd=seen.cost_usd,
            cpu_s=used.cpu_s,
            doing=seen.doing,
            doing_since=before.doing_since if doing == (before.doing, before.tool) else now,
            memory_bytes=used.memory_bytes,
            processes=used.processes,
            progress_at=now if progressed else before.progress_at,
            repeats=seen.repeats,
            seen_at=now,
            tool=seen.tool,
            tool_limit_s=seen.tool_limit_s,
            turns=seen.turns,
        )
        self._look_at_files(now)
        return self._vitals

    def read(self) -> bool:
        """Take in what the output has grown by; whether it grew."""
        grew = False
        while chunk := self._next_chunk():
            grew = True
            if self._understood:
                self._take(chunk)
        return grew

    def finish(self) -> None:
        """The command has ended: take in everything, a last line without an end included."""
        self.read()
        if self._rest and not self._cut:
            self._reader.feed(self._rest)
        self._rest = b""

    def _next_chunk(self) -> bytes:
        try:
            with sighting.open_regular(self._follow) as file:
                size = os.fstat(file.fileno()).st_size
                if not self._understood:
                    grown, self._offset = size != self._offset, size
                    return b"." if grown else b""
                file.seek(self._offset)
                chunk: bytes = file.read(_CHUNK_BYTES)
        except OSError:
            return b""
        self._offset += len(chunk)
        return chunk

    def _take(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not self._cut:
                self._reader.feed(line[:_LONGEST_LINE_BYTES])
            self._cut = False
        if len(rest) > _LONGEST_LINE_BYTES:
            if not self._cut:
                self._reader.feed(rest[:_LONGEST_LINE_BYTES])
            self._cut, rest = True, b""
        self._rest = rest

    def _look_at_files(self, now: float) -> None:
        seen = self._vitals
        if now - max(seen.progress_at, seen.busy_at, self._looked_at) < _QUIET_S:
            return
        self._looked_at = now
        newest = _newest_change(self._worktree)
        if self._newest is not None and newest != self._newest:
            self._vitals = replace(seen, changed_at=now)
        self._newest = newest


def _newest_change(top: Path) -> int:
    """A number that changes when a file below ``top`` is written, made or removed; links are not followed."""
    newest, entries, todo = 0, 0, [str(top)]
    while todo and entries < _MOST_ENTRIES:
        try:
            with os.scandir(todo.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.name != ".git":
                        newest = max(newest, entry.stat(follow_symlinks=False).st_mtime_ns)
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
        except OSError:
            continue
    return newest + entries

"""Looks at an attempt from beside it: its output, its processes, its files; writes down what it sees as ``Vitals``.

Owns one invariant: looking changes nothing and one look costs a bounded amount, whatever the agent prints or makes (files are
looked at only when all else is quiet, or says the same again and again). What the signs mean is ``policy.health``'s.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.vitals import BUSY_CORES, Vitals
from coordinator.fleet import sighting
from coordinator.kit import lock, process, process_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coordinator.fleet.driver import Reader

_CHUNK_BYTES: Final = 4 * 1024 * 1024
_CHUNKS: Final = 4
"""Read in one look; an agent that prints faster is read later, and never keeps us from looking up."""
_LONGEST_LINE_BYTES: Final = 1024 * 1024
_CPU_SPAN_S: Final = 0.5
"""Processor time is counted in steps of 10 ms: over a shorter span one step alone would look busy."""
_QUIET_S: Final = 10.0
"""Files are looked at when nothing else has moved for this long, and not more often than this. The output of an agent that
repeats itself moves nothing: what it polls for may be what changes files."""
_MOST_ENTRIES: Final = 20_000
"""A look at so many files takes 50 ms."""


class Sensor:
    """``follow`` is the file whose growth is progress; with ``understood`` its lines go to the reader, and ``tell`` gets each
    new note that they make.

    ``memory_bytes`` is the attempt's limit (0: none): up to it, memory is counted the cheap way, which takes shared pages for
    each process anew; beyond it, fairly.
    """

    def __init__(
        self,
        reader: Reader,
        follow: Path,
        worktree: Path,
        *,
        understood: bool,
        memory_bytes: int = 0,
        tell: Callable[[str], None] = lambda _note: None,
    ) -> None:
        now = time.monotonic()
        self._boot = lock.boot_id()
        self._reader = reader
        self._follow = follow
        self._worktree = worktree
        self._understood = understood
        self._memory_bytes = memory_bytes
        self._tell = tell
        self._told = ""
        self._offset = 0
        self._rest = b""
        self._cut = False
        self._cpu_at, self._cpu_s = now, 0.0
        self._looked_at = now
        self._mark: int | None = None
        self._vitals = Vitals(
            boot=self._boot,
            busy_at=now,
            changed_at=now,
            doing_since=now,
            progress_at=now,
            repeating_since=now,
            seen_at=now,
            started_at=now,
        )

    def look(self) -> Vitals:
        """One look; the caller keeps it to about one a second."""
        now = time.monotonic()
        progressed = self.read()
        used = process.usage(os.getpid())
        seen = self._reader.glimpse()
        before = self._vitals
        doing = (seen.doing, seen.tool)
        repeating = seen.repeats > 1 and seen.repeats >= before.repeats
        self._vitals = replace(
            before,
            busy_at=now if self._is_busy(used.cpu_s, now) else before.busy_at,
            cost_usd=seen.cost_usd,
            cpu_s=used.cpu_s,
            doing=seen.doing,
            doing_since=before.doing_since if doing == (before.doing, before.tool) else now,
            memory_bytes=self._memory(used.memory_bytes),
            processes=used.processes,
            progress_at=now if progressed else before.progress_at,
            repeating_since=before.repeating_since if repeating else now,
            repeats=seen.repeats,
            seen_at=now,
            tool=seen.tool,
            tool_limit_s=seen.tool_limit_s,
            turns=seen.turns,
        )
        self._look_at_files(now)
        return self._vitals

    # -- processes ---------------------------------------------------------------------------------------------------

    def _is_busy(self, cpu_s: float, now: float) -> bool:
        """Over a span that is long enough. A process that ends takes its time out of the sum until it is reaped."""
        passed = now - self._cpu_at
        if passed < _CPU_SPAN_S:
            return False
        spent = cpu_s - self._cpu_s
        self._cpu_at, self._cpu_s = now, cpu_s
        return spent / passed >= BUSY_CORES

    def _memory(self, cheaply: int) -> int:
        if not self._memory_bytes or cheaply <= self._memory_bytes:
            return cheaply
        return process_table.shared_fairly_below(os.getpid()) or cheaply

    # -- output ------------------------------------------------------------------------------------------------------

    def read(self) -> bool:
        """Take in what the output has grown by, or a good piece of it; whether it grew."""
        return sum(self._take_in(chunk) for chunk in self._chunks(_CHUNKS)) > 0

    def finish(self) -> None:
        """The command has ended: take in everything, a last line without an end included."""
        for chunk in self._chunks(None):
            self._take_in(chunk)
        if self._rest and not self._cut:
            self._feed(self._rest)
        self._rest = b""

    def _take_in(self, chunk: bytes) -> bool:
        if self._understood:
            self._take(chunk)
        return True

    def _chunks(self, most: int | None) -> Iterator[bytes]:
        """What is new in the file, which is never taken for longer than it was at first. An agent may have put anything in
        its place: what is no file is no output, and one that was cut is read from its start again."""
        try:
            with sighting.open_regular(self._follow) as file:
                size = os.fstat(file.fileno()).st_size
                if not self._understood:
                    grown, self._offset = size != self._offset, size
                    if grown:
                        yield b""
                    return
                if size < self._offset:
                    self._offset, self._rest, self._cut = 0, b"", False
                file.seek(self._offset)
                while self._offset < size and most != 0:
                    chunk: bytes = file.read(min(_CHUNK_BYTES, size - self._offset))
                    if not chunk:
                        return
                    self._offset += len(chunk)
                    most = most - 1 if most is not None else None
                    yield chunk
        except OSError:
            return

    def _take(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not self._cut:
                self._feed(line[:_LONGEST_LINE_BYTES])
            self._cut = False
        if len(rest) > _LONGEST_LINE_BYTES or self._cut:
            if not self._cut:
                self._feed(rest[:_LONGEST_LINE_BYTES])
            self._cut, rest = True, b""
        self._rest = rest

    def _feed(self, line: bytes) -> None:
        self._reader.feed(line)
        note = self._reader.glimpse().note
        if note and note != self._told:
            self._told = note
            self._tell(note)

    # -- files -------------------------------------------------------------------------------------------------------

    def _look_at_files(self, now: float) -> None:
        seen = self._vitals
        moved_at = seen.busy_at if seen.repeats > 1 else max(seen.progress_at, seen.busy_at)
        if now - max(moved_at, self._looked_at) < _QUIET_S:
            return
        self._looked_at = now
        mark = _mark_of(self._worktree)
        if self._mark is not None and mark != self._mark:
            self._vitals = replace(seen, changed_at=now)
        self._mark = mark


def _mark_of(top: Path) -> int:
    """A number that changes when a file below ``top`` is written, made or removed; links are not followed, git's own files
    are left out. The uppermost folders come first, for not all of a large tree is looked at."""
    mark, entries, todo = 0, 0, deque([str(top)])
    while todo and entries < _MOST_ENTRIES:
        try:
            with os.scandir(todo.popleft()) as found:
                for entry in found:
                    entries += 1
                    if entries > _MOST_ENTRIES:
                        break
                    if entry.name != ".git":
                        mark += _stamp(entry, todo)
        except OSError:
            continue
    return mark + entries


def _stamp(entry: os.DirEntry[str], todo: deque[str]) -> int:
    try:
        stamp = entry.stat(follow_symlinks=False).st_mtime_ns
        if entry.is_dir(follow_symlinks=False):
            todo.append(entry.path)
    except OSError:  # it is gone by now: that shows in its folder
        return 1
    return stamp

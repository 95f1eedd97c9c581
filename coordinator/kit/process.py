"""The one way to run an outside program: own session, output straight to a file, limits, and nothing left behind.

Owns one invariant: when ``run`` is over, however it is over, no descendant of the program runs on, and no stranger was
signalled (``kin`` knows who belongs to it). Not a shell and not a pipe: nothing here can block on a full one.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from coordinator.kit import process_table
from coordinator.kit.kin import Kin, below
from coordinator.kit.process_files import Room, open_sink, open_source
from coordinator.kit.process_table import Member, Usage
from coordinator.kit.spawned import CONTAINABLE, Spawned, WardedProgram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from coordinator.kit.spawned import ProgramEnd

    BeforeStop = Callable[[], Awaitable[None]]

_T = TypeVar("_T")

LINEAGE: Final = "COORDINATOR_LINEAGE"
"""Set in everything that ``run`` starts: one random word per run, after those of the runs around it."""

_LOOK_S: Final = 0.1
_WEIGH_S: Final = 0.25
"""A program that does nothing but take memory gets about 1 GiB/s."""
_WEIGH_FAIRLY_S: Final = 1.0
"""To count 1 GiB fairly takes about 20 ms."""
_LEFTOVER_GRACE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``timeout_s`` is wall time (``math.inf``: none), ``grace_s`` lies between SIGTERM and SIGKILL, ``memory_bytes``
    is what all processes of the run together may have in memory, shared pages counted once (0: no limit), ``output_bytes``
    what the output may grow by (0: no limit). (A limit of address space would forbid what uses none of it: node reserves
    tens of GiB.)"""

    timeout_s: float
    grace_s: float = 5.0
    memory_bytes: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How it ended. ``spawn_error`` is a sentence when it never started; otherwise ``code`` or ``signal`` is set.

    ``timed_out``, ``output_exceeded`` and ``memory_exceeded`` mean that we ended it. ``leftover`` counts descendants that
    outlived a program which ended by itself. ``clean`` is False when even SIGKILL did not end one (a disk that does not answer).
    """

    clean: bool = True
    code: int | None = None
    leftover: int = 0
    memory_exceeded: bool = False
    output_exceeded: bool = False
    signal: int | None = None
    spawn_error: str = ""
    timed_out: bool = False
    took_s: float = 0.0


class _Cause(enum.Enum):
    ENDED = enum.auto()
    MEMORY = enum.auto()
    OUTPUT = enum.auto()
    TIME = enum.auto()


async def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limits: Limits,
    output: Path | int,
    errors: Path | None = None,
    stdin: Path | bytes | None = None,
    pass_fds: Sequence[int] = (),
    before_stop: BeforeStop | None = None,
    contained: bool = False,
    exclusive: bool = False,
) -> Exit:
    """Run ``argv`` to its end; stdout and stderr are appended to ``output``, or stderr to ``errors``. A cancel ends the whole
    tree first; a second one cuts the grace short. ``env`` is the whole environment (plus ``LINEAGE``).

    ``contained``: a warden stands between (15 ms, 5 MB), whom no descendant escapes whatever it did to hide, and who ends
    them when we are killed; Linux only. ``exclusive``: this process runs nothing else meanwhile, so every new descendant of
    it (see ``adopt_orphans``) belongs to the program. ``before_stop`` comes before the SIGTERM of one that does not end by
    itself. Never raises for what the program or its files are like: that is ``spawn_error``.
    """
    began, mark = asyncio.get_running_loop().time(), secrets.token_hex(8)
    others = _descendants() if exclusive else None
    kind = WardedProgram if contained and CONTAINABLE else Spawned
    with contextlib.ExitStack() as stack:
        try:
            sinks = tuple(open_sink(stack, place) for place in (output, errors) if place is not None)
            room = Room(sinks, limits.output_bytes)
            source, marked = open_source(stack, stdin), {**env, LINEAGE: _lineage(mark)}
            spawned = kind.start(argv, cwd=cwd, env=marked, output=sinks, stdin=source, pass_fds=pass_fds)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return Exit(spawn_error=_unstarted(argv, error))
        kin = Kin(spawned.member, lineage=mark, others=others, spare_root=spawned.warded)
        scales = _Scales(spawned, limits.memory_bytes, exclusive=exclusive)
        cause, end = await _attend(spawned, kin, limits, room, scales, before_stop)
        over = room.cut()
    took_s = asyncio.get_running_loop().time() - began
    ended = Exit(clean=end.clean, leftover=kin.ended, output_exceeded=over, took_s=took_s)
    return _told(ended, cause, end.code) if not end.problem else Exit(spawn_error=_unstarted(argv, end.problem))


def _unstarted(argv: Sequence[str], problem: object) -> str:
    return f"cannot start {argv[0] if argv else 'nothing'}: {problem}"


def _told(ended: Exit, cause: _Cause, code: int | None) -> Exit:
    leftover = ended.leftover if cause is _Cause.ENDED else 0
    ended = replace(ended, leftover=leftover, memory_exceeded=cause is _Cause.MEMORY, timed_out=cause is _Cause.TIME)
    if code is None:
        return ended
    return replace(ended, code=code) if code >= 0 else replace(ended, signal=-code)


class _Scales:
    """Whether a run has more in memory than it may: the cheap sum first, which takes shared pages for each process anew."""

    def __init__(self, spawned: Spawned, most_bytes: int, *, exclusive: bool) -> None:
        self._most_bytes = most_bytes
        self._itself = not exclusive and not spawned.warded
        self._top = os.getpid() if exclusive else spawned.member.pid
        self._at = 0.0

    async def exceeded(self, now: float) -> bool:
        """Asked as often as one likes, it weighs at its own pace. To count fairly takes long where there is much to count."""
        if not self._most_bytes or now < self._at:
            return False
        self._at = now + _WEIGH_S
        if _weight(self._top, itself=self._itself) <= self._most_bytes:
            return False
        fairly = await asyncio.to_thread(process_table.shared_fairly_below, self._top, itself=self._itself)
        self._at = now + _WEIGH_FAIRLY_S
        return not fairly or fairly > self._most_bytes


def _weight(top: int, *, itself: bool) -> int:
    if sys.platform != "linux":
        return _usage_elsewhere(top, itself=itself).memory_bytes
    return process_table.usage_below(top, itself=itself).memory_bytes


async def _attend(
    spawned: Spawned,
    kin: Kin,
    limits: Limits,
    room: Room,
    scales: _Scales,
    before_stop: BeforeStop | None,
) -> tuple[_Cause, ProgramEnd]:
    """Wait for an end and leave nobody behind, whatever is raised meanwhile. Reaped last: until then its session is its
    own for certain."""
    grace_s = limits.grace_s
    try:
        cause = await _watch(spawned, limits, room, scales)
        if cause is _Cause.MEMORY:
            grace_s = 0.0  # what it is given, it takes
        if cause is _Cause.ENDED:
            before_stop = None
            grace_s = min(grace_s, _LEFTOVER_GRACE_S)
    finally:
        try:
            end = await _to_the_end(_conclude(spawned, kin, grace_s, before_stop), kin)
        except BaseException:
            spawned.reap()  # reaped already, unless the loop was torn down
            raise
    return cause, end


async def _conclude(spawned: Spawned, kin: Kin, grace_s: float, before_stop: BeforeStop | None) -> ProgramEnd:
    if before_stop is not None:
        await before_stop()
    return await spawned.conclude(clean=await kin.stop(grace_s))


async def _watch(spawned: Spawned, limits: Limits, room: Room, scales: _Scales) -> _Cause:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limits.timeout_s
    look_s = _LOOK_S if limits.output_bytes else _WEIGH_S if limits.memory_bytes else math.inf
    gone = asyncio.ensure_future(spawned.ended())
    try:
        while True:
            pause = min(deadline - loop.time(), look_s)
            await asyncio.wait({gone}, timeout=None if pause == math.inf else max(pause, 0.0))
            if gone.done():
                return _Cause.ENDED
            if room.exceeded():
                return _Cause.OUTPUT
            if await scales.exceeded(loop.time()):
                return _Cause.MEMORY
            if loop.time() >= deadline:
                return _Cause.TIME
    finally:
        gone.cancel()


async def _to_the_end(ending: Coroutine[None, None, _T], kin: Kin) -> _T:
    """Cancelled or not, the stopping is carried through; when the loop itself is torn down, it is one blow."""
    work = asyncio.ensure_future(ending)
    cancelled = False
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled = True
            kin.hurry()
    if work.cancelled():
        kin.kill_now()
    if cancelled or work.cancelled():
        raise asyncio.CancelledError
    return work.result()


def _lineage(mark: str) -> str:
    return ":".join(filter(None, (os.environ.get(LINEAGE), mark)))


# --- processes that are there already ----------------------------------------------------------------------------------


def tree(pid: int) -> tuple[Member, ...]:
    """The process and all its descendants that run, itself first."""
    table = process_table.rows()
    pids = (pid, *sorted(below(pid, table)))
    return tuple(table[each].member for each in pids if each in table and not table[each].zombie)


async def stop_tree(pid: int, started: str, grace_s: float, tag: str | None = None) -> bool:
    """End the process (if it is still the one that ``started`` then), its descendants and its session, and every process
    with the entry ``tag`` (``NAME=value``) in its environment. False when one cannot be ended."""
    kin = Kin(Member(pid, started), tag=tag or "")
    return await _to_the_end(kin.stop(grace_s), kin)


async def stop_tagged(tag: str, grace_s: float) -> bool:
    """End every process with the entry ``tag`` (``NAME=value``) in its environment: orphans of an earlier run of ours."""
    kin = Kin(None, tag=tag)
    return await _to_the_end(kin.stop(grace_s), kin)


def hide() -> None:
    """From now on no other process of this user can read our memory or environment, root excepted. Linux only."""
    if sys.platform == "linux":
        import ctypes

        set_dumpable = 4
        ctypes.CDLL(None).prctl(set_dumpable, 0, 0, 0, 0)


def adopt_orphans() -> bool:
    """From now on descendants whose parent dies become our children, so that none can leave our tree. Linux only."""
    if sys.platform != "linux":
        return False
    import ctypes  # 10 ms, and only runners need it

    set_child_subreaper = 36
    return bool(ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0) == 0)


def usage(pid: int) -> Usage:
    """What all descendants of the process use, without itself."""
    if sys.platform != "linux":
        return _usage_elsewhere(pid)
    return process_table.usage_below(pid)


def _usage_elsewhere(pid: int, *, itself: bool = False) -> Usage:
    import psutil

    cpu_s, memory_bytes, count = 0.0, 0, 0
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(pid)
        for child in (*([top] if itself else []), *top.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                cpu_s, memory_bytes = cpu_s + times.user + times.system, memory_bytes + child.memory_info().rss
                count += 1
    return Usage(cpu_s=cpu_s, memory_bytes=memory_bytes, processes=count)


def free_disk(path: Path) -> int:
    """Bytes that we may still write on the disk of ``path``."""
    import psutil

    return psutil.disk_usage(str(path)).free


def free_inodes(path: Path) -> int | None:
    """Files and folders that may still be made on the disk of ``path``; None where the file system does not count them."""
    found = os.statvfs(path)
    return found.f_favail if found.f_files else None


def free_memory() -> int:
    """Bytes that new processes can use without anybody being pushed out."""
    import psutil

    return psutil.virtual_memory().available


def _descendants() -> frozenset[Member]:
    """Ours before an exclusive run; orphans of an earlier one that ended too late to be reaped with it are reaped now."""
    table = process_table.rows()
    for pid, seen in table.items():
        if seen.zombie and seen.parent == os.getpid():
            process_table.reap(pid)
    return frozenset(table[pid].member for pid in below(os.getpid(), table))

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
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from coordinator.kit import process_table
from coordinator.kit.kin import Kin, below
from coordinator.kit.process_files import Room, open_sink, open_source
from coordinator.kit.process_table import Member, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

LINEAGE: Final = "COORDINATOR_LINEAGE"
"""Set in everything that ``run`` starts: one random word per run, after those of the runs around it."""

_LOOK_S: Final = 0.1
_LEFTOVER_GRACE_S: Final = 0.5

_LIMITED: Final = 'ulimit -v "$1" 2>/dev/null; shift; exec "$@"'
"""Sets the limit without code between fork and exec. Fails only where a tighter one holds or the system has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``timeout_s`` is wall time (``math.inf``: none), ``grace_s`` lies between SIGTERM and SIGKILL, ``memory_bytes``
    is address space per process (0: no limit), ``output_bytes`` what the output may grow by (0: no limit)."""

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


class Spawned:
    """A child of ours in a session of its own. Unless it is reaped, its pid stays its own even after its end."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        seen = process_table.row(popen.pid)
        self.member = seen.member if seen else Member(popen.pid, "")

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: Sequence[int],
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> Self:
        """``output`` takes stdout and, the last of it, stderr. Raise ``OSError`` or ``ValueError`` when it cannot be started."""
        return cls(
            subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(env),
                stdin=stdin,
                stdout=output[0],
                stderr=output[-1],
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        )

    def reap(self) -> int | None:
        """The exit code, negative for a signal; None while it runs, which is then nobody's business any more."""
        code = self._popen.poll()
        if code is None:
            self.detach()
        return code

    def detach(self) -> None:
        """Let it outlive us without a complaint of ``Popen``, which believes that children are always waited for."""
        if self._popen.returncode is None:
            self._popen.returncode = 0


class _Cause(enum.Enum):
    ENDED = enum.auto()
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
    on_start: Callable[[int], None] | None = None,
    exclusive: bool = False,
) -> Exit:
    """Run ``argv`` to its end; stdout and stderr are appended to ``output``, or stderr to ``errors``. A cancel ends the whole
    tree first; a second one cuts the grace short.

    ``env`` is the whole environment (plus ``LINEAGE``). ``exclusive``: this process runs nothing else meanwhile, so
    every new descendant of it (see ``adopt_orphans``) belongs to the program, whatever it did to hide.
    Never raises for what the program or its files are like: that is ``spawn_error``.
    """
    began = asyncio.get_running_loop().time()
    mark = secrets.token_hex(8)
    others = _descendants() if exclusive else None
    with contextlib.ExitStack() as stack:
        try:
            sinks = tuple(open_sink(stack, place) for place in (output, errors) if place is not None)
            room = Room(sinks, limits.output_bytes)
            marked = {**env, LINEAGE: _lineage(mark)}
            program, source = _limited(argv, cwd, env, limits.memory_bytes), open_source(stack, stdin)
            spawned = Spawned.start(program, cwd=cwd, env=marked, output=sinks, stdin=source, pass_fds=pass_fds)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return Exit(spawn_error=f"cannot start {argv[0] if argv else 'nothing'}: {error}")
        kin = Kin(spawned.member, lineage=mark, others=others)
        cause, clean, code = await _attend(spawned, kin, limits, room, on_start)
        over = room.cut()
    took_s = asyncio.get_running_loop().time() - began
    leftover = kin.ended if cause is _Cause.ENDED else 0
    return _with_code(
        Exit(clean=clean, leftover=leftover, output_exceeded=over, timed_out=cause is _Cause.TIME, took_s=took_s), code
    )


def _with_code(ended: Exit, code: int | None) -> Exit:
    if code is None:
        return ended
    return replace(ended, code=code) if code >= 0 else replace(ended, signal=-code)


async def _attend(
    spawned: Spawned, kin: Kin, limits: Limits, room: Room, on_start: Callable[[int], None] | None
) -> tuple[_Cause, bool, int | None]:
    """Wait for an end and leave nobody behind, whatever is raised meanwhile. Reaped last: until then its session is its
    own for certain."""
    grace_s, clean = limits.grace_s, False
    try:
        if on_start:
            on_start(spawned.member.pid)
        cause = await _watch(spawned, limits, room)
        if cause is _Cause.ENDED:
            grace_s = min(grace_s, _LEFTOVER_GRACE_S)
    finally:
        try:
            clean = await _to_the_end(kin, grace_s)
        finally:
            code = spawned.reap()
    return cause, clean, code


async def _watch(spawned: Spawned, limits: Limits, room: Room) -> _Cause:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limits.timeout_s
    gone = asyncio.ensure_future(exited(spawned.member))
    try:
        while True:
            left = deadline - loop.time()
            pause = min(left, _LOOK_S) if limits.output_bytes else left
            await asyncio.wait({gone}, timeout=None if pause == math.inf else max(pause, 0.0))
            if gone.done():
                return _Cause.ENDED
            if room.exceeded():
                return _Cause.OUTPUT
            if loop.time() >= deadline:
                return _Cause.TIME
    finally:
        gone.cancel()


async def _to_the_end(kin: Kin, grace_s: float) -> bool:
    """Cancelled or not, the stopping is carried through; when the loop itself is torn down, it is one blow."""
    work = asyncio.ensure_future(kin.stop(grace_s))
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


def _limited(argv: Sequence[str], cwd: Path, env: Mapping[str, str], memory_bytes: int) -> Sequence[str]:
    """With a memory limit a shell stands before the program for an instant, so its being missing is looked at here."""
    if not argv:
        raise ValueError("the command is empty")
    if not memory_bytes:
        return argv
    name = argv[0]
    place = str(cwd / name) if os.sep in name else shutil.which(name, path=env.get("PATH", os.defpath))
    if not place or not os.access(place, os.X_OK) or os.path.isdir(place):
        raise FileNotFoundError("no such program, or it is not executable")
    return ("/bin/sh", "-c", _LIMITED, "sh", str(max(memory_bytes // 1024, 1)), *argv)


# --- processes that are there already ----------------------------------------------------------------------------------


async def exited(member: Member) -> None:
    """Return when that process has ended (reaped or not), at once when it is not there. It need not be a child."""
    try:
        descriptor = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        while process_table.alive(member):  # noqa: ASYNC110 - without a pidfd nothing announces it
            await asyncio.sleep(_LOOK_S)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        if process_table.alive(member):
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def tree(pid: int) -> tuple[Member, ...]:
    """The process and all its descendants that run, itself first."""
    table = process_table.rows()
    pids = (pid, *sorted(below(pid, table)))
    return tuple(table[each].member for each in pids if each in table and not table[each].zombie)


async def stop_tree(pid: int, started: str, grace_s: float, tag: str | None = None) -> bool:
    """End the process (if it is still the one that ``started`` then), its descendants and its session, and every process
    with the entry ``tag`` (``NAME=value``) in its environment. False when one cannot be ended."""
    return await _to_the_end(Kin(Member(pid, started), tag=tag or ""), grace_s)


async def stop_tagged(tag: str, grace_s: float) -> bool:
    """End every process with the entry ``tag`` (``NAME=value``) in its environment: orphans of an earlier run of ours."""
    return await _to_the_end(Kin(None, tag=tag), grace_s)


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


def _usage_elsewhere(pid: int) -> Usage:
    import psutil

    cpu_s, memory_bytes, count = 0.0, 0, 0
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                cpu_s, memory_bytes = cpu_s + times.user + times.system, memory_bytes + child.memory_info().rss
                count += 1
    return Usage(cpu_s=cpu_s, memory_bytes=memory_bytes, processes=count)


def rss_bytes(pid: int) -> int:
    """Resident memory of the process and its descendants; 0 when it is gone."""
    import psutil

    total = 0
    for member in tree(pid):
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(member.pid).memory_info().rss
    return total


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

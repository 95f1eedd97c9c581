"""Who runs on this machine right now: one reading of the process table, and signals that cannot hit a stranger.

Owns one invariant: a process is named by pid *and* start, and is signalled only while both still match. Starts are the
opaque texts of ``kit.lock.process_start``. Reads ``/proc``; elsewhere ``ps``, and then marks in environments are unseen.
It decides nothing about who must die: that is ``kit.process``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One process of all times on this boot."""

    pid: int
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``zombie``: it has ended and only waits to be reaped."""

    member: Member
    group: int
    parent: int
    session: int
    zombie: bool


def parse_stat(pid: int, text: str) -> Row | None:
    """A line of ``/proc/PID/stat``; the command's name may hold blanks and parentheses, so the last ``)`` counts."""
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return Row(
        member=Member(pid, fields[19]),
        group=int(fields[2]),
        parent=int(fields[1]),
        session=int(fields[3]),
        zombie=fields[0] in "ZX",
    )


def row(pid: int) -> Row | None:
    """The process with this pid, None when there is none."""
    if not _LINUX:
        return _from_ps("-p", str(pid)).get(pid)
    try:
        return parse_stat(pid, (_PROC / str(pid) / "stat").read_text(errors="replace"))
    except OSError:
        return None


def rows() -> dict[int, Row]:
    """Every process that can be seen, by pid."""
    if not _LINUX:
        return _from_ps("-ax")
    found = {}
    with os.scandir(_PROC) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        if seen := row(pid):
            found[pid] = seen
    return found


def _from_ps(*selection: str) -> dict[int, Row]:
    """``ps`` of macOS and the BSDs. A session is not told there: the group stands in for it."""
    command = ["ps", *selection, "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout
    found = {}
    for line in output.splitlines():
        fields = line.split(None, 4)
        if len(fields) == 5:
            pid, parent, group = int(fields[0]), int(fields[1]), int(fields[2])
            member = Member(pid, fields[4].strip())
            zombie = fields[3].startswith("Z")
            found[pid] = Row(member=member, group=group, parent=parent, session=group, zombie=zombie)
    return found


def alive(member: Member) -> bool:
    """It still runs, and is not a stranger that got the same pid."""
    seen = row(member.pid)
    return seen is not None and seen.member == member and not seen.zombie


def born_before(one: Member, other: Member) -> bool:
    """Whether ``one`` surely started earlier; False when the starts cannot be compared."""
    return one.started.isdigit() and other.started.isdigit() and int(one.started) < int(other.started)


def environment(pid: int) -> frozenset[bytes] | None:
    """The ``NAME=value`` entries the process was started with. None when it cannot be told, for instance because the
    process is just being replaced by another program."""
    try:
        return frozenset((_PROC / str(pid) / "environ").read_bytes().split(b"\0")) - {b""} or None
    except OSError:
        return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What some processes together use: CPU seconds so far (their ended children's included), bytes in memory, how many
    they are. ``memory_bytes`` counts a page that several of them share several times."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    processes: int = 0


def members_below(pid: int) -> list[Member]:
    """All descendants of a process that run, parents first. A walk down the tree: 0.1 ms, and so what it finds is still
    there. Linux only; it may miss one while others end."""
    found, todo = [], _children(pid)
    while todo:
        each = todo.pop(0)
        seen = row(each)
        if seen and not seen.zombie:
            found.append(seen.member)
        todo += _children(each)
    return found


def usage_below(pid: int, *, itself: bool = False) -> Usage:
    """Of all descendants of a process (and ``itself``). A walk down the tree, not over the table: 0.1 ms. Linux only."""
    ticks = pages = count = 0
    todo = [pid] if itself else _children(pid)
    while todo:
        each = todo.pop()
        try:
            fields = (_PROC / str(each) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if len(fields) < 22 or fields[0] in "ZX":
            continue
        ticks += sum(int(field) for field in fields[11:15])
        pages += int(fields[21])
        count += 1
        todo += _children(each)
    return Usage(
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"), memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"), processes=count
    )


def shared_fairly_below(pid: int, *, itself: bool = False) -> int:
    """Bytes in memory of all descendants (and ``itself``), each shared page counted once in all (PSS). Dearer than
    ``usage_below``; 0 where the system does not tell of any of them."""
    total, todo = 0, [pid] if itself else _children(pid)
    while todo:
        each = todo.pop()
        total += _fair_share(each)
        todo += _children(each)
    return total


def _fair_share(pid: int) -> int:
    """Of one process; all it has in memory when it lets nobody look closer (one with privileges does not)."""
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(_PROC / str(pid) / "task")
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError):
            found += map(int, (_PROC / str(pid) / "task" / thread / "children").read_text().split())
    return found


def send(member: Member, number: signal.Signals) -> bool:
    """Signal it; False when it is gone (or not ours to signal). The pid cannot change hands in between: the descriptor
    is opened first and the start compared afterwards."""
    try:
        descriptor = os.pidfd_open(member.pid) if hasattr(os, "pidfd_open") else -1
    except OSError as error:
        if error.errno != errno.ENOSYS:
            return False
        descriptor = -1
    try:
        if not alive(member):
            return False
        if descriptor >= 0:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(member.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


def reap(pid: int) -> None:
    """Collect an ended child that nobody else waits for; harmless when it is not a child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def lock_holders(path: Path) -> tuple[Member, ...]:
    """The processes that share the open file description which holds the ``flock`` on ``path``, except ourselves.

    Exact: a process that merely has the file open is not listed. This finds a command that got rid of its session,
    its parent and its environment. Empty where there is no ``/proc``.
    """
    try:
        wanted = path.stat()
    except OSError:
        return ()
    found = []
    for pid, seen in rows().items() if _LINUX else ():
        if pid != os.getpid() and not seen.zombie and _holds(pid, wanted):
            found.append(seen.member)
    return tuple(found)


def _holds(pid: int, wanted: os.stat_result) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in descriptors:
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{pid}/fd/{name}")
            same = (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
            if same and "FLOCK" in Path(f"/proc/{pid}/fdinfo/{name}").read_text():
                return True
    return False

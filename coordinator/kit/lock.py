"""Locks that the kernel lets go the instant their holder is gone, and the records that say who holds them.

Owns one invariant: whether a claim is held is answered by the lock alone, never by a clock, a pid or the text of a
record; and a lock file is never deleted or truncated: a second file of the same name would be a second lock.
It is not a lease: a holder that hangs keeps its lock until somebody ends it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, Self

from coordinator.domain.attempt import ClaimRecord

if TYPE_CHECKING:
    from pathlib import Path

_OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Not inherited by chance, no symlink followed, and a fifo in a file's place cannot stall us."""

_NO_SUCH_FILE: Final = frozenset({errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENXIO})
"""What opening says when there is no file of ours there: nothing, a symlink, a socket."""

_LARGEST_PID: Final = 2**31
_LARGEST_PROTOCOL_FILE_BYTES: Final = 1024 * 1024


class HeldLock:
    """A lock that this process holds until ``release`` or until it and every heir of ``fd`` are gone.

    ``fd`` may be handed to a child (``pass_fds``): then the lock outlives a killed parent until that child ends too.
    ``release`` frees it for all of them at once. Dropping the object without ``release`` keeps the lock, on purpose.
    """

    __slots__ = ("fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_in_place(self) -> bool:
        """Whether the file at ``path`` still is the one that is locked: one that was removed locks nobody out."""
        try:
            there, ours = self.path.lstat(), os.fstat(self.fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Let go; safe to call twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _unlock_and_close(fd)


def acquire(path: Path) -> HeldLock | None:
    """Take the lock of ``path``, creating the file when missing; None at once when somebody else has it.

    Built on ``filelock.lock_descriptor`` rather than ``filelock.FileLock``: the same flock, but no release when the
    interpreter exits (which would free it under a child that inherited it) and no silent fallback to a lock file
    without a kernel lock where flock is missing. Raises ``OSError`` when it cannot be locked at all.
    """
    from filelock import lock_descriptor  # costs 30 ms, and importing the sdk must not

    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN_FLAGS, 0o644)
        try:
            if not lock_descriptor(fd, blocking=False):
                os.close(fd)
                return None
            if _still_named(path, fd):
                return HeldLock(path, fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # somebody removed the file between open and lock: this lock would guard no name


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock of ``path`` right now. A missing file, or a link in its place, nobody can hold.

    Asks with a shared lock: any number of probes see past each other. A probe may make a simultaneous ``acquire``
    miss once; those who claim try again (``sdk.agent``).
    """
    try:
        fd = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            return False
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return True
    except BaseException:
        os.close(fd)
        raise
    _unlock_and_close(fd)
    return False


def _still_named(path: Path, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def _unlock_and_close(fd: int) -> None:
    """A child between fork and exec may still share ``fd``, so closing alone would free the lock only later."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


# --- files of the protocol -------------------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Readers see the old content or the new one, whole, whatever is killed meanwhile; ``OSError`` if not written.

    The temporary file is in the same folder and starts with a dot, which every reader of a folder skips.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a regular file; None when there is none, or when it is anything else or unreasonably large."""
    try:
        fd = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    with open(fd, "rb") as file:
        text = file.read(_LARGEST_PROTOCOL_FILE_BYTES + 1)
    if len(text) > _LARGEST_PROTOCOL_FILE_BYTES:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def read_record(path: Path) -> ClaimRecord | None:
    """Who took the task last; None when there is no record or it is unreadable as one."""
    data = read_object(path)
    if data is None:
        return None
    try:
        record = ClaimRecord.from_json(data)
    except (KeyError, TypeError):
        return None
    return record if record.generation >= 0 and 1 <= record.pid < _LARGEST_PID else None


def write_record(path: Path, record: ClaimRecord) -> None:
    """Put ``record`` in the place of the one before; only the holder of the lock beside it may."""
    write_atomic(path, json.dumps(record.to_json(), sort_keys=True).encode() + b"\n")


# --- naming one process of all times ---------------------------------------------------------------------------------


def own_identity() -> tuple[str, str, int, str]:
    """Host, boot id, pid and process start of the calling process."""
    pid = os.getpid()
    return os.uname().nodename, boot_id(), pid, process_start(pid) or ""


def boot_id() -> str:
    """A word that changes with each boot of this host; empty when the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return _output("sysctl", "-n", "kern.bootsessionuuid") if sys.platform == "darwin" else ""


def process_start(pid: int) -> str | None:
    """When the process started, opaque, to be compared for equality only; None when it is gone or a zombie."""
    if not os.path.exists("/proc/self/stat"):
        state, _, started = _output("ps", "-o", "state=,lstart=", "-p", str(pid)).partition(" ")
        return None if not state or state.startswith("Z") else started.strip()
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if len(fields) < 20 or fields[0] in {b"Z", b"X"} else fields[19].decode("ascii")


def same_process_alive(pid: int, started: str, boot: str, host: str) -> bool:
    """Whether that very process runs here now, not a later one with its pid.

    False also for a process of another host, of which nothing can be known here: ask its lock instead.
    """
    if not started or host != os.uname().nodename or boot != boot_id():
        return False
    return process_start(pid) == started


def _output(*command: str) -> str:
    import subprocess  # only on systems without /proc

    answer = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return answer.stdout.strip()

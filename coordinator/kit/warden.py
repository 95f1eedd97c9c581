"""Stands between us and a program that is run, as a process of its own, so that nothing of the program can get away.

Owns one invariant: a warden ends last. Orphans of the program become its children, so while it has none, none is left; and
when whoever started it is gone (killed, too), it ends them all. It runs as a script and imports next to nothing: it has to be
there within milliseconds. Asking politely and deciding who must die is ``kin``'s, as long as somebody is there to ask.
"""

from __future__ import annotations

import os
import select
import signal
import sys

TYPE_CHECKING = False
"""What ``typing`` calls so; to import that would take longer than everything else here."""
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

_DEAF_TO: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SET_CHILD_SUBREAPER: Final = 36
_AGAIN_S: Final = 0.02
_FREEZE_ROUNDS: Final = 1000

ENDED: Final = "ended"
FAILED: Final = "failed"


def command(argv: Sequence[str], link: int) -> list[str]:
    """The command line that runs ``argv`` under a warden. ``link`` is its end of a pair of sockets: there it says how the
    program ended, and that our end is closed tells it to end all."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(link), *argv]


def parse(word: bytes) -> tuple[int | None, str]:
    """What a warden said: the exit code (negative for a signal), or why the program could not be started; nothing of
    both when it was killed before it could say anything."""
    kind, _, rest = word.decode(errors="replace").partition(" ")
    if kind == FAILED:
        return None, rest or "the program could not be started"
    digits = rest.removeprefix("-")
    return (int(rest), "") if kind == ENDED and digits.isascii() and digits.isdigit() else (None, "")


def _adopt_orphans() -> None:
    """Not by ``import ctypes``, which takes 5 ms: its C part alone can do it."""
    import _ctypes

    prctl = _ctypes.dlsym(_ctypes.dlopen(None, os.RTLD_NOW), "prctl")  # type: ignore[arg-type] # None: what is linked already
    _ctypes.call_function(prctl, (_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def _serve(link: int, argv: Sequence[str]) -> None:
    os.set_inheritable(link, False)
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    _adopt_orphans()
    wake, alarm = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(alarm, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    default = [*_DEAF_TO, signal.SIGPIPE, signal.SIGXFSZ]
    try:
        main = os.posix_spawnp(argv[0], list(argv), _environment(), setsid=True, setsigdef=default)
    except (OSError, ValueError) as error:
        _say(link, f"{FAILED} {error}")
        return
    while True:
        ready, _, _ = select.select([link, wake], [], [])
        _drain(wake)
        _reap(link, main)
        if link in ready:
            break
    while _reap(link, main):
        _end_all()
        select.select([wake], [], [], _AGAIN_S)
        _drain(wake)


def _environment() -> dict[bytes, bytes]:
    """As we got it: the interpreter may have added a locale of its own at its start."""
    with open("/proc/self/environ", "rb") as file:
        entries = file.read().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def _say(link: int, word: str) -> None:
    try:
        os.write(link, word.encode(errors="replace"))
    except OSError:  # nobody is there any more, and the link tells us so
        return


def _drain(wake: int) -> None:
    try:
        os.read(wake, 4096)
    except BlockingIOError:
        return


def _reap(link: int, main: int) -> bool:
    """Collect who has ended; False when there is nobody any more."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == main:
            _say(link, f"{ENDED} {os.waitstatus_to_exitcode(status)}")


# --- the end, when nobody is there to ask for it ----------------------------------------------------------------------


def _end_all() -> None:
    """Frozen from the top down: what is frozen neither forks nor collects children, so their pids stay their own."""
    frozen: set[int] = set()
    for _ in range(_FREEZE_ROUNDS):
        fresh = [(pid, parent) for pid, parent in _descendants() if pid not in frozen]
        if not fresh:
            break
        for pid, parent in fresh:
            _send(pid, parent, signal.SIGSTOP)
            frozen.add(pid)
    for pid, parent in reversed(_descendants()):
        _send(pid, parent, signal.SIGKILL)


def _descendants() -> list[tuple[int, int]]:
    """Each with its parent, parents first."""
    found: list[tuple[int, int]] = []
    todo = [os.getpid()]
    while todo:
        parent = todo.pop()
        below = [(child, parent) for child in _children(parent)]
        found += below
        todo += [child for child, _ in below]
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:  # it ended meanwhile
        return found
    return found


def _send(pid: int, parent: int, number: signal.Signals) -> None:
    """Only while it is a child of that parent, which is one of ours: then it is one of ours, too, whoever had the pid."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2:])

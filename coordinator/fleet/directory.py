"""The run-time folder of one repository, and the lock that makes a daemon the only one in it.

Owns one invariant: whoever is inside ``sole_daemon`` is the only writer of the ledger, also when the folder was reached
through another path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import DaemonBusy
from coordinator.kit import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.sdk.layout import Layout

_PROBE_PATIENCE_S: Final = 0.2
_PROBE_PAUSE_S: Final = 0.01


def make_state(layout: Layout) -> None:
    """Create the folder; a ``.gitignore`` of its own keeps it out of everybody's commits."""
    layout.state.mkdir(parents=True, exist_ok=True)
    keep_out_of_commits(layout)
    for folder in (layout.ready, layout.claims, layout.attempts, layout.worktrees, layout.agents):
        folder.mkdir(exist_ok=True)


def keep_out_of_commits(layout: Layout) -> None:
    """Where there is a state folder, it hides itself from git. Raises ``OSError``."""
    ignore = layout.state / ".gitignore"
    if layout.state.is_dir() and not ignore.exists():
        lock.write_atomic(ignore, b"*\n")


@contextlib.contextmanager
def sole_daemon(layout: Layout) -> Iterator[lock.HeldLock]:
    """Hold the directory's daemon lock, and give it; raises ``DaemonBusy`` naming the holder."""
    held = _acquire(layout)
    if held is None:
        raise DaemonBusy(f"another daemon works here: {_holder(layout)}; `coordinator status` shows what it does")
    with held:
        host, _, pid, started = lock.own_identity()
        text = json.dumps({"host": host, "pid": pid, "started": started, "api": str(layout.api)})
        os.ftruncate(held.fd, 0)
        os.pwrite(held.fd, text.encode(), 0)
        yield held


@contextlib.contextmanager
def own_scratch(layout: Layout) -> Iterator[None]:
    """Temporary files of this process lie in the state folder meanwhile, so that the next daemon removes what a killed one
    left. Only for the sole daemon."""
    scratch, before = layout.state / "scratch", tempfile.tempdir
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, exist_ok=True)
    tempfile.tempdir = str(scratch)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _acquire(layout: Layout) -> lock.HeldLock | None:
    """Somebody who only asks whether a daemon runs holds the lock for microseconds; that must not turn us away."""
    deadline = time.monotonic() + _PROBE_PATIENCE_S
    while (held := lock.acquire(layout.daemon_lock)) is None and time.monotonic() < deadline:
        time.sleep(_PROBE_PAUSE_S)
    return held


def _holder(layout: Layout) -> str:
    data = lock.read_object(layout.daemon_lock) or {}
    if "pid" not in data:
        return "it has just started"
    return f"pid {data['pid']} on {data.get('host', 'this host')}"

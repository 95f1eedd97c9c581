"""The muster roll: which agent processes of ours live, as files in ``agents/`` that outlive any daemon.

Owns one invariant: a name is borne by one living process at a time, by a held lock; a file proves nothing until its process
was looked at. Processes that only speak the protocol (``agents/PROTOCOL.md``) are not on it.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from coordinator.domain.errors import TemporaryError
from coordinator.kit import lock

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

STOP_FILE = "stop"
"""In an attempt's folder: whoever wants the attempt ended writes the reason here (see ``runner``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MusterEntry:
    """One file. ``since`` is this boot's monotonic clock when the agent began what it does now."""

    agent: str
    boot: str
    draining: bool = False
    generation: int | None = None
    host: str
    pid: int
    since: float = 0.0
    started: str
    task: str | None = None

    def alive(self) -> bool:
        return lock.same_process_alive(self.pid, self.started, self.boot, self.host)


def read_muster(layout: Layout) -> dict[str, MusterEntry]:
    """Entries of living processes, by name. Files of dead ones are removed, files that are no entries ignored."""
    found: dict[str, MusterEntry] = {}
    try:
        paths = sorted(layout.agents.glob("*.json"))
    except OSError:
        return found
    for path in paths:
        entry = read_entry(path)
        if entry is None:
            continue
        if entry.alive():
            found[entry.agent] = entry
        elif entry.host == lock.own_identity()[0] and not lock.is_held(path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
    return found


def read_entry(path: Path) -> MusterEntry | None:
    """None when the file is not there or is no entry."""
    if path.name.startswith("."):
        return None
    try:
        data = lock.read_object(path) or {}
    except OSError:
        return None
    generation, task, since = data.get("generation"), data.get("task"), data.get("since", 0.0)
    texts = tuple(data.get(name) for name in ("agent", "boot", "host", "started"))
    if not all(isinstance(text, str) for text in texts) or type(data.get("pid")) is not int or data["pid"] < 2:
        return None
    return MusterEntry(
        agent=path.stem,
        boot=data["boot"],
        draining=data.get("draining") is True,
        generation=generation if type(generation) is int else None,
        host=data["host"],
        pid=data["pid"],
        since=float(since) if isinstance(since, int | float) else 0.0,
        started=data["started"],
        task=task if isinstance(task, str) else None,
    )


class Enrolment:
    """An agent process's own line on the roll, from ``enrol`` to ``leave``."""

    def __init__(self, layout: Layout, name: str, held: lock.HeldLock) -> None:
        self._path = layout.agents / f"{name}.json"
        self._held = held
        host, boot, pid, started = lock.own_identity()
        self._identity = {"agent": name, "boot": boot, "host": host, "pid": pid, "started": started}
        self._draining = False
        self._task: tuple[str | None, int | None] = (None, None)
        self._since = time.monotonic()

    @classmethod
    def enrol(cls, layout: Layout, name: str) -> Self:
        """Raise ``TemporaryError`` when a living process bears the name."""
        layout.agents.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(layout.agents / f"{name}.lock")
        if held is None:
            raise TemporaryError(f"another agent process is called {name}")
        enrolment = cls(layout, name, held)
        try:
            enrolment._write()
        except BaseException:
            held.release()
            raise
        return enrolment

    def drain(self) -> None:
        self._draining = True
        self._note()

    def work_on(self, task: str | None, generation: int | None) -> None:
        """What is done from now on; None: nothing."""
        self._task, self._since = (task, generation), time.monotonic()
        self._note()

    def leave(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot leave the roll: %s", error, extra={"action": "muster_unwritten"})
        finally:
            self._held.release()

    def _note(self) -> None:
        """The roll is for people and for adoption; a full disk does not end the work."""
        try:
            self._write()
        except OSError as error:
            _log.warning("cannot write the roll: %s", error, extra={"action": "muster_unwritten"})

    def _write(self) -> None:
        task, generation = self._task
        entry = MusterEntry(
            draining=self._draining,
            generation=generation,
            since=self._since,
            task=task,
            **self._identity,  # type: ignore[arg-type]
        )
        lock.write_atomic(self._path, json.dumps(asdict(entry), sort_keys=True).encode() + b"\n")

"""Claims tasks for an agent process.

Owns one invariant: a task is taken only under its lock, while its ready entry still lies there, with the very generation
the entry names and a record older than that. Losing to somebody else is an ordinary answer, not an error; which task
becomes ready is the daemon's decision.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import ClaimRecord, Order
from coordinator.domain.errors import BadRepository, ClaimHeld, UnknownTask
from coordinator.domain.task import TASK_ID
from coordinator.kit import lock
from coordinator.sdk.claim import Claim, Heartbeat
from coordinator.sdk.layout import Layout, task_of_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)

_ENTRY_NAME: Final = re.compile(r"\d+-\d+-.+")
_PROBE_PATIENCE_S: Final = 0.25
"""A daemon that probes or withdraws holds a lock for microseconds; waiting this long tells it from an owner."""
_PROBE_PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyEntry:
    """One file of ``ready/``: the offer of one generation of one task to one role."""

    generation: int
    path: Path
    role: str
    task: str


class Agent:
    """``state`` is the coordinator's run-time folder: as given, else from ``COORDINATOR_STATE``, else ``.coordinator`` of
    ``repository``, else the nearest one from the current directory upwards.

    ``roles`` limits which tasks ``claim_next`` takes (empty: any). ``name`` is what people read in messages.
    """

    def __init__(
        self,
        repository: Path | None = None,
        state: Path | None = None,
        name: str | None = None,
        roles: Sequence[str] = (),
    ) -> None:
        folder = _find_state(repository, state)
        self.layout = Layout(repository=repository or folder.parent, state=folder)
        self.name = name or f"agent-{os.getpid()}"
        self.roles = tuple(roles)

    def claim_next(self) -> Claim | None:
        """The most urgent task that is ready and free; None when there is none right now.

        One bad entry holds up no other; an ``OSError`` (full disk, no permission) is raised when nothing else was left.
        """
        failure: OSError | None = None
        for path in self._entries():
            try:
                claim = self._try(path)
            except OSError as error:
                _log.warning("cannot claim %s: %s", path.name, error, extra={"action": "claim_failed"})
                failure = error
                continue
            if claim is not None:
                return claim
        if failure is not None:
            raise failure
        return None

    def claim(self, task_id: str) -> Claim:
        """That very task, whatever its role. ``ClaimHeld`` names who holds it; ``UnknownTask`` when it is not offered."""
        if TASK_ID.fullmatch(task_id) is None:
            raise UnknownTask(f"{task_id!r} is no task id")
        deadline = time.monotonic() + _PROBE_PATIENCE_S
        while True:
            offers = [path for path in self._entries() if task_of_entry(path.name) == task_id]
            for path in offers:
                claim = self._try(path, any_role=True)
                if claim is not None:
                    return claim
            held = lock.is_held(self.layout.claim_lock(task_id))
            if not held and not offers:
                raise UnknownTask(f"task {task_id} is not offered: there is no ready entry for it")
            if time.monotonic() > deadline:
                if held:
                    raise ClaimHeld(self._held_by(task_id))
                raise UnknownTask(f"task {task_id} is offered, but its ready entry or its order cannot be read")
            time.sleep(_PROBE_PAUSE_S)

    def _entries(self) -> list[Path]:
        """Most urgent and oldest first. What is no entry is skipped."""
        folder = self.layout.ready
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        return [
            folder / name
            for name in sorted(names)
            if _ENTRY_NAME.fullmatch(name) and TASK_ID.fullmatch(task_of_entry(name))
        ]

    def _try(self, path: Path, *, any_role: bool = False) -> Claim | None:
        entry = _read_entry(path)
        if entry is None or (self.roles and not any_role and entry.role not in self.roles):
            return None
        self.layout.claims.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(self.layout.claim_lock(entry.task))
        if held is None:
            return None
        claim = None
        try:
            claim = self._take(entry, held)
        finally:
            if claim is None:
                held.release()
        return claim

    def _take(self, entry: ReadyEntry, held: lock.HeldLock) -> Claim | None:
        """Under the lock. Everything read before it was taken may be old, so it is read again."""
        if _read_entry(entry.path) != entry:
            return None
        record_path = self.layout.claim_record(entry.task)
        last = lock.read_record(record_path)
        if last is not None and last.generation >= entry.generation:
            entry.path.unlink(missing_ok=True)  # claimed by somebody who was killed before this very line
            return None
        order = _read_order(self.layout.attempt(entry.task, entry.generation), entry)
        if order is None:
            _log.warning("%s has no order", entry.path.name, extra={"action": "order_unreadable", "task": entry.task})
            return None
        record = self._record(entry)
        beat = Heartbeat(Path(order.attempt) / "heartbeat")
        try:
            lock.write_record(record_path, record)
            entry.path.unlink(missing_ok=True)
            return Claim(beat=beat, held=held, order=order, record=record, path=record_path)
        except BaseException:
            beat.close()
            raise

    def _record(self, entry: ReadyEntry) -> ClaimRecord:
        host, boot, pid, started = lock.own_identity()
        return ClaimRecord(
            agent=self.name,
            boot=boot,
            generation=entry.generation,
            host=host,
            pid=pid,
            started=started,
            task=entry.task,
        )

    def _held_by(self, task_id: str) -> str:
        record = lock.read_record(self.layout.claim_record(task_id))
        holder = record.holder if record is not None else "somebody who left no record"
        return f"task {task_id} is held by {holder}"


def _find_state(repository: Path | None, state: Path | None) -> Path:
    named = os.environ.get("COORDINATOR_STATE")
    if state is not None or (repository is None and named):
        return Path(state or named or "").absolute()
    if repository is not None:
        return (repository / ".coordinator").absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".coordinator").is_dir():
            return folder / ".coordinator"
    raise BadRepository(f"no .coordinator folder in {here} or above: run `coordinator init`, or set COORDINATOR_STATE")


def _read_entry(path: Path) -> ReadyEntry | None:
    """None when it is gone, or is not the offer its name says."""
    data = lock.read_object(path) or {}
    generation, role, task = data.get("generation"), data.get("role"), task_of_entry(path.name)
    if type(generation) is not int or generation < 1 or not isinstance(role, str) or data.get("task", task) != task:
        return None
    return ReadyEntry(generation=generation, path=path, role=role, task=task)


def _read_order(folder: Path, entry: ReadyEntry) -> Order | None:
    """None unless it is an order of exactly this task and generation."""
    try:
        order = Order.from_json(lock.read_object(folder / "order.json") or {})
    except (KeyError, TypeError):
        return None
    return order if (order.task, order.generation) == (entry.task, entry.generation) else None

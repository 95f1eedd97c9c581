"""The ledger: the one place where a task's state changes, kept in memory and written through to the store.

Owns one invariant: every change is an arrow of the state table, and its row, its journal entry and its event are one
transaction. It decides nothing; the steward does.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.errors import UnknownTask
from coordinator.domain.event import TaskChanged
from coordinator.domain.task import Task, TaskState, check_transition

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime

    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """A task and where it stands. ``attempts`` counts those charged, ``tries`` all since somebody last wished for it,
    ``crashes`` the quick deaths in a row up to now; ``resume`` is the session that the next attempt goes on with;
    ``not_before`` is wall time in epoch seconds (a pause that outlives a restart), ``commit`` where it landed,
    ``feedback`` what the next brief must say, ``hold`` that no attempt follows the one at work,
    ``cancel`` why the one at work is to be stopped and the task cancelled (empty: it is not).
    """

    attempts: int = 0
    cancel: str = ""
    commit: str = ""
    crashes: int = 0
    created_at: str = ""
    feedback: str = ""
    generation: int = 0
    hold: bool = False
    not_before: float = 0.0
    reason: str = ""
    resume: str = ""
    state: TaskState
    task: Task
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One attempt as the ledger keeps it; times are ISO 8601 UTC or None, ``rescue`` the commit that its
    rescue ref points to, empty when it left nothing, ``session`` what a later attempt may go on with."""

    agent: str = ""
    base: str = ""
    claimed_at: str | None = None
    cost_usd: float = 0.0
    duration_s: float = 0.0
    ended_at: str | None = None
    ending: str = ""
    exit_code: int | None = None
    generation: int
    host: str = ""
    pid: int | None = None
    reason: str = ""
    rescue: str = ""
    role: str = ""
    session: str = ""
    task: str
    turns: int = 0


FRESH: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "attempts": 0,
        "cancel": "",
        "crashes": 0,
        "feedback": "",
        "hold": False,
        "not_before": 0.0,
        "resume": "",
        "tries": 0,
    }
)
"""Changes that make a task start anew, with all its attempts."""


class Ledger:
    """All tasks that were ever seen in this directory and not forgotten."""

    def __init__(self, store: Store, bus: Bus, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._before: dict[str, LedgerEntry | None] | None = None
        """What the entries changed by the batch under way were before it."""
        self._entries: dict[str, LedgerEntry] = {}
        self._by_state: dict[TaskState, dict[str, None]] = {state: {} for state in TaskState}
        for row in store.query("tasks"):
            entry = _entry_of(row)
            self._entries[entry.task.id] = entry
            self._by_state[entry.state][entry.task.id] = None

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, task_id: str) -> LedgerEntry:
        """Raise ``UnknownTask`` when there is none."""
        try:
            return self._entries[task_id]
        except KeyError:
            raise UnknownTask(f"there is no task {task_id!r}; `coordinator tasks list` shows them all") from None

    def find(self, task_id: str) -> LedgerEntry | None:
        return self._entries.get(task_id)

    def ids(self) -> Collection[str]:
        """Every id that was ever seen."""
        return self._entries.keys()

    def entries(self) -> Iterator[LedgerEntry]:
        return iter(tuple(self._entries.values()))

    def in_state(self, *states: TaskState) -> list[LedgerEntry]:
        """Entries in any of ``states``, most urgent and oldest first."""
        found = [self._entries[task_id] for state in states for task_id in self._by_state[state]]
        found.sort(key=lambda entry: (entry.task.priority, entry.created_at, entry.task.id))
        return found

    def highest_priority(self, state: TaskState) -> int | None:
        """The smallest priority number in a state, None when nobody is in it."""
        return min((self._entries[task_id].task.priority for task_id in self._by_state[state]), default=None)

    def count(self, *states: TaskState) -> int:
        return sum(len(self._by_state[state]) for state in states)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Many changes, one transaction. When it fails (full disk), memory goes back to what the store still says, and nobody
        is told of what did not happen."""
        if self._before is not None:
            yield
            return
        self._before = {}
        try:
            with self._bus.held(), self._store.transaction():
                yield
        except BaseException:
            for task_id, entry in self._before.items():
                self._forget(task_id)
                if entry is not None:
                    self._remember(entry)
            raise
        finally:
            self._before = None

    def add(self, task: Task, *, reason: str, not_before: float = 0.0) -> LedgerEntry:
        """A task seen for the first time; it is pending."""
        now = self._clock.now().isoformat()
        entry = LedgerEntry(task=task, state=TaskState.PENDING, reason=reason, not_before=not_before, created_at=now)
        with self.batch():
            self._write(entry)
            self._publish(entry, old="")
        return entry

    def move(self, task_id: str, state: TaskState, reason: str, /, **changes: Any) -> LedgerEntry:
        """Change the state; ``changes`` are other fields of the entry. Raises ``ForbiddenTransition``."""
        old = self.get(task_id)
        check_transition(task_id, old.state, state)
        entry = replace(old, state=state, reason=reason, **changes)
        with self.batch():
            self._write(entry)
            self._publish(entry, old=old.state)
        return entry

    def note(self, task_id: str, /, **changes: Any) -> LedgerEntry:
        """Change fields other than the state (reason, definition, feedback) without an event."""
        entry = replace(self.get(task_id), **changes)
        if entry != self._entries[task_id]:
            self._write(entry)
        return entry

    def attempt(self, task_id: str, generation: int) -> AttemptRow | None:
        for row in self._store.query("attempts_of", task=task_id):
            if row["generation"] == generation:
                return AttemptRow(**dict(row))
        return None

    def landed_before(self, moment: datetime) -> list[tuple[str, int]]:
        """Attempts that landed before ``moment`` and whose rescue refs are kept, the oldest first."""
        rows = self._store.query("attempts_landed", before=moment.isoformat())
        return [(row["task"], row["generation"]) for row in rows]

    def record(self, task_id: str, generation: int, /, **changes: Any) -> AttemptRow:
        """Create or change an attempt's row."""
        old = self.attempt(task_id, generation) or AttemptRow(task=task_id, generation=generation)
        row = replace(old, **changes)
        self._store.execute("attempt_put", **asdict(row))
        return row

    def fact(self, key: str, value: Any) -> None:
        """Leave a value where readers without a daemon find it (gate, tools, disk)."""
        self._store.execute("fact_put", key=key, value=json.dumps(value))

    def _forget(self, task_id: str) -> None:
        known = self._entries.pop(task_id, None)
        if known is not None:
            self._by_state[known.state].pop(task_id, None)

    def read_fact(self, key: str) -> Any:
        """What ``fact`` left, None when nothing."""
        rows = self._store.query("fact_get", key=key)
        return json.loads(rows[0]["value"]) if rows else None

    def _publish(self, entry: LedgerEntry, *, old: str) -> None:
        self._bus.publish(
            TaskChanged(
                task=entry.task.id,
                old=old,
                new=entry.state,
                reason=entry.reason,
                generation=entry.generation,
                title=entry.task.headline,
            )
        )

    def _write(self, entry: LedgerEntry) -> None:
        self._store.execute("task_put", **_row_of(entry, self._clock.now().isoformat()))
        if self._before is not None:
            self._before.setdefault(entry.task.id, self._entries.get(entry.task.id))
        self._forget(entry.task.id)
        self._remember(entry)

    def _remember(self, entry: LedgerEntry) -> None:
        self._entries[entry.task.id] = entry
        self._by_state[entry.state][entry.task.id] = None


def task_from_json(text: str) -> Task:
    """The inverse of how the ledger stores a definition."""
    data = json.loads(text)
    return Task(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _entry_of(row: sqlite3.Row) -> LedgerEntry:
    return LedgerEntry(
        task=task_from_json(row["definition"]),
        state=TaskState(row["state"]),
        reason=row["reason"],
        generation=row["generation"],
        attempts=row["attempts"],
        crashes=row["crashes"],
        resume=row["resume"],
        tries=row["tries"],
        hold=bool(row["hold"]),
        cancel=row["cancel"],
        not_before=row["not_before"],
        commit=row["commit_hash"],
        feedback=row["feedback"],
        created_at=row["created_at"],
    )


def _row_of(entry: LedgerEntry, now: str) -> Mapping[str, Any]:
    task = entry.task
    return {
        "id": task.id,
        "state": entry.state,
        "priority": task.priority,
        "title": task.headline,
        "role": task.role,
        "reason": entry.reason,
        "generation": entry.generation,
        "attempts": entry.attempts,
        "crashes": entry.crashes,
        "resume": entry.resume,
        "tries": entry.tries,
        "hold": entry.hold,
        "cancel": entry.cancel,
        "not_before": entry.not_before,
        "file": task.file,
        "line": task.line,
        "digest": task.digest,
        "definition": json.dumps(task.to_json()),
        "commit_hash": entry.commit,
        "feedback": entry.feedback,
        "created_at": entry.created_at,
        "updated_at": now,
    }

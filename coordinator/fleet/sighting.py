"""What the files of an attempt say right now: claim record, lock, heartbeat, result.

Owns one invariant: everything here was written by an agent and may be anything; what cannot be understood is absent,
never an exception. It reads and reports; judging is ``policy``'s, acting the steward's.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.domain.attempt import ClaimRecord, Order, Result
from coordinator.domain.vitals import Vitals
from coordinator.kit import lock

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """``beat`` is the heartbeat file's modification stamp (compared for change only), ``doing`` its ``state``.

    ``vitals`` are what its runner sees of it; agents that only speak the protocol may leave them out."""

    beat: int = 0
    doing: str = ""
    held: bool
    note: str = ""
    record: ClaimRecord | None
    vitals: Vitals | None = None


def look(layout: Layout, task_id: str, generation: int) -> Sighting:
    """Read record and heartbeat, probe the lock."""
    record = lock.read_record(layout.claim_record(task_id))
    held = lock.is_held(layout.claim_lock(task_id))
    path = layout.attempt(task_id, generation) / "heartbeat"
    data = _read_json(path)
    try:
        beat = path.lstat().st_mtime_ns
    except OSError:
        beat = 0
    return Sighting(
        record=record,
        held=held,
        beat=beat,
        doing=str(data.get("state", ""))[:40],
        note=str(data.get("note", ""))[:200],
        vitals=_vitals(data.get("vitals")),
    )


def _vitals(data: object) -> Vitals | None:
    """None when there are none, when they are no vitals or of another boot: then their times mean nothing."""
    try:
        vitals = Vitals.from_json(data) if isinstance(data, dict) else None
    except TypeError:
        return None
    return vitals if vitals is not None and vitals.boot == lock.boot_id() else None


def lived_s(layout: Layout, task_id: str, seen: Sighting) -> float:
    """Seconds from an attempt's claim to its last sign of life, for one that could not say so itself."""
    if seen.vitals is not None:
        return max(seen.vitals.seen_at - seen.vitals.started_at, 0.0)
    try:
        claimed = layout.claim_record(task_id).lstat().st_mtime_ns
    except OSError:
        return 0.0
    return max(seen.beat - claimed, 0) / 1e9


def read_order(layout: Layout, task_id: str, generation: int) -> Order | None:
    try:
        return Order.from_json(_read_json(layout.attempt(task_id, generation) / "order.json"))
    except (KeyError, TypeError):
        return None


def read_result(layout: Layout, task_id: str, generation: int) -> Result | None:
    """None when there is none, when it is unreadable or when it speaks of another task or generation."""
    data = _read_json(layout.attempt(task_id, generation) / "result.json")
    try:
        result = Result.from_json(data)
    except (KeyError, TypeError):
        return None
    if result.task != task_id or result.generation != generation:
        return None
    return result


def last_lines(path: Path, limit_bytes: int = 2_000) -> str:
    """The end of a log, for a reason or a brief; empty when there is none."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit_bytes))
            text: str = file.read(limit_bytes).decode(errors="replace")
    except OSError:
        return ""
    lines = text.splitlines()
    return "\n".join(lines[1:] if size > limit_bytes and len(lines) > 1 else lines).strip()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return lock.read_object(path) or {}
    except OSError:
        return {}


def open_regular(path: Path) -> Any:
    """Open without following a link and without hanging on a pipe that an agent put there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")

"""Which tasks may be claimed now, and the cause for each that may not.

Owns one invariant: no two tasks whose paths overlap are active at the same time. Order is priority, then age. What is
active, how much room there is and what time it is come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.policy.overlap import overlap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A task that wants to run. ``not_before`` is on the same clock as ``now`` of ``choose``."""

    id: str
    not_before: float
    paths: tuple[str, ...]
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """``ready`` in the order to publish; ``causes`` says for each task looked at and not chosen why it waits.

    ``wake_at`` is the earliest time at which a pause ends, None when no pause runs.
    """

    causes: tuple[tuple[str, str], ...]
    ready: tuple[str, ...]
    wake_at: float | None


def choose(
    waiting: Iterable[Waiting],
    active: Sequence[Waiting],
    *,
    now: float,
    refusal: str,
    role_slots: Mapping[str, int],
    room: int,
) -> Choice:
    """Pick at most ``room`` tasks of ``waiting`` (already in order).

    ``role_slots`` caps active tasks per role (a role that is not in it has no cap). ``refusal`` is a cause that stops
    all dispatch for now (no disk, draining), empty when there is none.
    """
    busy = list(active)
    used: dict[str, int] = {}
    for task in busy:
        used[task.role] = used.get(task.role, 0) + 1
    ready: list[str] = []
    causes: list[tuple[str, str]] = []
    wake_at: float | None = None
    for task in waiting:
        if len(ready) >= room and wake_at is not None:
            break
        if task.not_before > now:
            wake_at = task.not_before if wake_at is None else min(wake_at, task.not_before)
            continue
        if len(ready) >= room:
            break
        cause = refusal or _obstacle(task, busy, used, role_slots)
        if cause:
            causes.append((task.id, cause))
            continue
        ready.append(task.id)
        busy.append(task)
        used[task.role] = used.get(task.role, 0) + 1
    return Choice(ready=tuple(ready), causes=tuple(causes), wake_at=wake_at)


def _obstacle(task: Waiting, busy: Sequence[Waiting], used: Mapping[str, int], role_slots: Mapping[str, int]) -> str:
    slots = role_slots.get(task.role)
    if slots is not None and used.get(task.role, 0) >= slots:
        return f"role {task.role} runs at most {slots} at a time, all are busy"
    if task.paths:
        for other in busy:
            if overlap(task.paths, other.paths):
                return f"task {other.id} is at work on the same paths"
    return ""

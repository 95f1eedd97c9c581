"""Which tasks may be claimed now, and the cause for each that may not.

Owns one invariant: no two tasks whose paths overlap are active at the same time. Order is priority, then age. What is
active, how much room there is and what time it is come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from coordinator.policy.overlap import overlap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

_CAUSES: Final = 200
_RESERVED: Final = 200
"""Bounds of what one look costs with thousands of tasks in each other's way."""


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
    role_refusals: Mapping[str, str],
    role_slots: Mapping[str, int],
    room: int,
    roomless: Collection[str] = (),
) -> Choice:
    """Pick at most ``room`` tasks of ``waiting`` (already in order), not counting those of ``roomless`` roles.

    ``role_slots`` caps active tasks per role (a role that is not in it has no cap). ``refusal`` is a cause that stops
    all dispatch for now (no disk, draining), ``role_refusals`` one that stops a role; empty or absent: there is none.
    A task that waits for paths keeps others off them (a reservation), so that a broad task is not overtaken for ever.
    """
    plan = _Plan(busy=list(active), role_slots=role_slots, room=room, roomless=roomless)
    for task in active:
        plan.used[task.role] = plan.used.get(task.role, 0) + 1
    for task in waiting:
        if plan.room <= 0 and not roomless:
            break  # something is ready, so the next look is soon: neither causes nor pauses of the rest matter now
        if task.not_before > now:
            plan.wake_at = min(task.not_before, plan.wake_at or task.not_before)
            continue
        cause = refusal or role_refusals.get(task.role, "") or plan.obstacle(task)
        if cause:
            if len(plan.causes) < _CAUSES:
                plan.causes.append((task.id, cause))
        elif plan.has_room(task):
            plan.take(task)
    return Choice(causes=tuple(plan.causes), ready=tuple(plan.ready), wake_at=plan.wake_at)


@dataclass(slots=True, kw_only=True)
class _Plan:
    busy: list[Waiting]
    causes: list[tuple[str, str]] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    role_slots: Mapping[str, int]
    room: int
    roomless: Collection[str]
    used: dict[str, int] = field(default_factory=dict)
    wake_at: float | None = None

    def has_room(self, task: Waiting) -> bool:
        return task.role in self.roomless or self.room > 0

    def obstacle(self, task: Waiting) -> str:
        slots = self.role_slots.get(task.role)
        if slots is not None and self.used.get(task.role, 0) >= slots:
            return f"role {task.role} runs at most {slots} at a time, all are busy"
        if task.paths:
            for other in self.busy:
                if overlap(task.paths, other.paths):
                    if len(self.busy) < _RESERVED:
                        self.busy.append(task)
                    return f"task {other.id} is before it on the same paths"
        return ""

    def take(self, task: Waiting) -> None:
        self.ready.append(task.id)
        self.busy.append(task)
        self.used[task.role] = self.used.get(task.role, 0) + 1
        if task.role not in self.roomless:
            self.room -= 1

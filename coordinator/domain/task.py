"""A task as a person or a tool ordered it, and the table of states it can be in.

Owns one invariant: a task moves only along an arrow of ``TRANSITIONS``. Who moves it is the fleet's ledger alone.
Parsing lives in ``taskfile``; choosing what runs next in ``policy.dispatch``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.errors import ForbiddenTransition

if TYPE_CHECKING:
    from collections.abc import Mapping

TASK_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
"""An id is a file name on every system: no separators, no leading dot, at most 100 characters."""


class TaskState(enum.StrEnum):
    """Where a task stands. Every state but the working ones can be explained in one sentence that names the cause."""

    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    HELD = "held"
    LANDING = "landing"
    PENDING = "pending"
    READY = "ready"
    REJECTED = "rejected"
    RUNNING = "running"
    VALIDATING = "validating"


_S = TaskState

TRANSITIONS: Final[Mapping[TaskState, frozenset[TaskState]]] = MappingProxyType(
    {
        _S.BLOCKED: frozenset({_S.PENDING, _S.HELD, _S.CANCELLED, _S.COMPLETED, _S.REJECTED}),
        _S.CANCELLED: frozenset({_S.PENDING, _S.REJECTED}),
        _S.CLAIMED: frozenset({_S.RUNNING, _S.VALIDATING, _S.PENDING, _S.FAILED, _S.HELD, _S.CANCELLED}),
        _S.COMPLETED: frozenset({_S.PENDING}),
        _S.FAILED: frozenset({_S.PENDING, _S.CANCELLED, _S.REJECTED}),
        _S.HELD: frozenset({_S.PENDING, _S.CANCELLED, _S.COMPLETED, _S.REJECTED}),
        _S.LANDING: frozenset({_S.COMPLETED, _S.VALIDATING, _S.PENDING, _S.FAILED, _S.HELD, _S.CANCELLED}),
        _S.PENDING: frozenset({_S.READY, _S.BLOCKED, _S.HELD, _S.CANCELLED, _S.COMPLETED, _S.REJECTED}),
        _S.READY: frozenset({_S.CLAIMED, _S.PENDING, _S.BLOCKED, _S.HELD, _S.CANCELLED}),
        _S.REJECTED: frozenset({_S.PENDING, _S.CANCELLED}),
        _S.RUNNING: frozenset({_S.VALIDATING, _S.PENDING, _S.FAILED, _S.HELD, _S.CANCELLED}),
        _S.VALIDATING: frozenset({_S.LANDING, _S.PENDING, _S.FAILED, _S.HELD, _S.CANCELLED}),
    }
)
"""The whole life of a task. ``→ pending`` is an attempt that is tried again (from the working states), an offer taken
back (``ready``), an obstacle gone (``blocked``), a person's wish or an edited file (elsewhere)."""

ACTIVE: Final = frozenset({_S.READY, _S.CLAIMED, _S.RUNNING, _S.VALIDATING, _S.LANDING})
"""States in which a task occupies its paths: no overlapping task is made ready meanwhile."""

OWNED: Final = frozenset({_S.CLAIMED, _S.RUNNING})
"""States in which an agent process is expected to hold the claim's lock."""

SETTLED: Final = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED, _S.REJECTED})
"""States that nothing but a person or an edited file leaves."""


OPERATOR_MAY: Final[Mapping[str, frozenset[TaskState]]] = MappingProxyType(
    {
        "hold": frozenset({_S.PENDING, _S.BLOCKED}) | ACTIVE,
        "release": frozenset({_S.HELD}) | ACTIVE,
        "retry": frozenset({_S.FAILED, _S.CANCELLED, _S.COMPLETED, _S.HELD, _S.PENDING}),
    }
)
"""In which states a person's wish has a meaning. The arrows alone do not tell: some are for the steward, who knows that
nobody is at work any more."""


def check_wish(task_id: str, wish: str, state: TaskState) -> None:
    """Raise ``ForbiddenTransition`` when a task in ``state`` cannot be held, released or retried (``wish``)."""
    if state not in OPERATOR_MAY[wish]:
        possible = ", ".join(sorted(OPERATOR_MAY[wish]))
        raise ForbiddenTransition(f"{wish} has no meaning for {task_id}, which is {state} (only when: {possible})")


def check_transition(task_id: str, old: TaskState, new: TaskState) -> None:
    """Raise ``ForbiddenTransition`` unless the table has the arrow ``old → new``."""
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing"
        raise ForbiddenTransition(f"task {task_id}: {old} → {new} is not possible (from {old}: {allowed})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One ``[[tasks]]`` table of the spool, validated.

    ``priority`` 1 is the most urgent. ``timeout_s`` and ``max_attempts`` are None when the role card or the settings
    decide. ``accept`` entries are shell command lines that must exit 0 on the merged tree. ``paths`` are globs
    (``**`` crosses folders) that the attempt may touch; empty means anything. ``file`` is relative to the repository
    when inside it, ``line`` the 1-based line of its ``[[tasks]]`` header. ``digest`` identifies the definition
    (not the place it was written at): an edit changes it, a moved line does not.
    """

    id: str
    prompt: str
    accept: tuple[str, ...] = ()
    budget_usd: float | None = None
    depends_on: tuple[str, ...] = ()
    digest: str = ""
    env: tuple[tuple[str, str], ...] = ()
    file: str = ""
    labels: tuple[str, ...] = ()
    line: int = 0
    max_attempts: int | None = None
    model: str = ""
    paths: tuple[str, ...] = ()
    priority: int = 1
    role: str = ""
    schedule: str = ""
    timeout_s: float | None = None
    title: str = ""

    def to_json(self) -> dict[str, Any]:
        """Flat and JSON-ready; ``dataclasses.asdict`` copies in depth and takes ten times as long."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def headline(self) -> str:
        """The title, or the first line of the prompt, at most 80 characters."""
        text = self.title or self.prompt.strip().partition("\n")[0]
        return text if len(text) <= 80 else text[:79] + "…"

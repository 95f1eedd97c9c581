"""What is asked before an attempt is offered: which of its role's models it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.domain.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelQuestion:
    """``models`` are those of the role's card, each an id or ``ID via UPSTREAM``; ``attempt`` counts those charged before this
    one, of ``attempts`` that there may be."""

    attempt: int
    attempts: int
    generation: int
    models: tuple[str, ...]
    role: str
    task: Task

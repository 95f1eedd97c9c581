"""What is asked before an attempt is offered, and what is known of what models can take."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCapacity:
    """``calls`` that all upstreams together hold at one time (None: one has never said), ``in_flight`` those under way.
    ``spent``: the day's or the fleet's budget is used up."""

    calls: int | None
    in_flight: int
    spent: bool

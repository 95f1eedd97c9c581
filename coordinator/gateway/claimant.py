"""Who makes a call, beyond the bare claim: what limits, prices and routing need to know of an attempt.

Owns one invariant: it is told by whoever owns the tasks, never by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.domain.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimant:
    """``budget_usd`` is the task's (0: none), ``lane`` follows its priority, ``places`` are folders that only this attempt has
    and the names they go by when calls of several attempts are compared. ``retrieve``: its role wants RAG. ``upstream``: the one
    that was chosen for the attempt, tried first where it has the model (empty: any)."""

    agent: str = ""
    budget_usd: float = 0.0
    lane: Lane = Lane.NORMAL
    places: Mapping[str, str] = field(default_factory=dict)
    retrieve: bool = False
    role: str = ""
    upstream: str = ""

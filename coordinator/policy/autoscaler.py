"""How many agent processes there should be: those that work, one for each task that waits, a spare one, and no more than fit.

Owns one invariant: it never wants more than the cap, except those already at work, whom it never wants gone; fewer wanted means
that an idle agent ends by itself when it has lingered. Nothing is forecast: what is known to come (a schedule, a pause that
ends, a task whose last dependency lands) is counted, and a guess beyond that costs idle hours and saves no waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SMALLEST_SHARE: Final = 0.1
"""Of its time that an agent is taken to spend in model calls at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDemand:
    """``busy`` agents work, ``queued`` tasks are on offer, ``coming`` ones are known to be soon. ``recent``: there was any of
    these not longer ago than an agent lingers."""

    busy: int
    coming: int = 0
    queued: int
    recent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBounds:
    """What limits it. ``most`` and ``least`` are the settings'. ``free_bytes`` (None: not looked at) is memory that agents may
    still take, ``agent_bytes`` what one was measured to take. ``calls`` is how many model calls the upstreams hold at one time
    (None: nobody knows), ``calls_per_agent`` how many of them a busy agent has under way on average (0: not seen).
    ``spent``: a budget is used up."""

    agent_bytes: float = 0.0
    calls: int | None = None
    calls_per_agent: float = 0.0
    free_bytes: float | None = None
    least: int = 0
    most: int
    spare: int = 1
    spent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSize:
    """``cap`` is the most there may be now and ``why`` what sets it, ``wanted`` how many there should be."""

    cap: int
    wanted: int
    why: str


class Autoscaler:
    """It remembers nothing: lingering is what an idle agent does, and what was measured is handed in."""

    def size(self, demand: FleetDemand, bounds: FleetBounds) -> FleetSize:
        cap, why = self._cap(demand, bounds)
        needed = demand.busy + demand.queued + demand.coming
        spare = bounds.spare if (needed or demand.recent) and not bounds.spent else 0
        wanted = max(needed + spare, bounds.least)
        return FleetSize(cap=cap, wanted=max(min(wanted, cap), demand.busy), why=why)

    @staticmethod
    def _cap(demand: FleetDemand, bounds: FleetBounds) -> tuple[int, str]:
        """The tightest of them; the settings' when several are as tight. One may always be: some work needs no model and little
        memory, and whether a start fits is looked at once more before it."""
        caps = [(bounds.most, "[fleet] agents")]
        if bounds.spent:
            caps.append((demand.busy, "a budget is used up"))
        if bounds.free_bytes is not None and bounds.agent_bytes > 0:
            more = max(int(bounds.free_bytes // max(bounds.agent_bytes, 1.0)), 0)
            caps.append((demand.busy + more, "memory that is free"))
        if bounds.calls is not None and bounds.calls_per_agent > 0:
            share = max(bounds.calls_per_agent, _SMALLEST_SHARE)
            caps.append((max(int(bounds.calls / share), 1), "what the upstreams hold"))
        cap, why = min(caps, key=lambda one: one[0])
        return max(cap, 1), why

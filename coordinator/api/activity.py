"""What an agent does right now and what it uses, in a few words, and what the coordinator makes of it.

Owns one invariant: it says only what was seen, as of the agent's last look at itself; one that tells nothing of itself gets no
words. It reads and judges as the daemon does, and decides nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.view import duration, plural
from coordinator.domain.vitals import Doing, Vitals
from coordinator.fleet import cards, sighting, vigil
from coordinator.policy import health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.api.desk import Desk
    from coordinator.fleet.sighting import Sighting

_QUIET_S: Final = 10.0
"""A silence shorter than this is not worth a word."""


def activity(vitals: Vitals | None) -> str:
    """``thinking 12 s``, ``using Bash 40 s of 120 s``, ``working``; empty when it does not tell."""
    if vitals is None:
        return ""
    time = duration(vitals.doing_s)
    match vigil.doing_of(vitals):
        case Doing.USING_TOOL:
            limit = f" of {vitals.tool_limit_s:.0f} s" if vitals.tool_limit_s > 0 else ""
            return f"using {vitals.tool[:40] or 'a tool'} {f'{vitals.doing_s:.0f} s' if limit else time}{limit}"
        case Doing.THINKING:
            return f"thinking {time}"
        case Doing.FINISHED:
            return f"finished {time} ago"
        case doing:
            quiet = f", quiet {duration(vitals.quiet_s)}" if vitals.quiet_s >= _QUIET_S else ""
            return f"{doing}{quiet}"


def usage(shown: Mapping[str, Any]) -> str:
    """``310 MB, 12 turns, 0.12 USD``, as far as there is something to tell."""
    parts = [f"{shown['memory_bytes'] // 2**20} MB"] if shown["memory_bytes"] >= 2**20 else []
    parts += [plural(shown["turns"], "turn")] if shown["turns"] else []
    parts += [f"{shown['cost_usd']:.2f} USD"] if shown["cost_usd"] >= 0.005 else []
    return ", ".join(parts)


def shown_of(vitals: Vitals | None) -> dict[str, Any]:
    """The same for machines; zeros when it does not tell."""
    known = vitals or Vitals()
    return {
        "activity": activity(vitals),
        "cost_usd": known.cost_usd,
        "memory_bytes": known.memory_bytes,
        "turns": known.turns,
    }


def diagnose(desk: Desk, task: str, generation: int, role: str, seen: Sighting) -> dict[str, str]:
    """``state`` and ``reason``: the daemon's own word, else what one look can tell."""
    for agent in desk.live.agents() if desk.live is not None else ():
        if (agent.task, agent.generation) == (task, generation) and agent.health:
            return {"state": agent.health, "reason": agent.health_reason}
    settings = desk.settings
    card = cards.load(desk.root / settings.paths.agents).cards.get(role or settings.fleet.default_role)
    order = sighting.read_order(desk.layout, task, generation)
    timeout_s = order.timeout_s if order is not None else (card.timeout_s if card is not None else 600.0)
    limits = health.thresholds(settings.fleet, card, None, timeout_s=timeout_s)
    if order is not None:
        limits = replace(limits, budget_usd=order.budget_usd)
    found = vigil.diagnose(seen, limits, desk.clock, heartbeat_s=settings.fleet.heartbeat_s)
    return {"state": found.state.value, "reason": found.reason}

"""What another policy would have chosen in the decisions that were made, read from the store.

Owns one invariant: a policy is asked about a decision with nothing learnt but what was known before it. Decisions of pinned tasks
are left out: nothing was decided there. The judging is ``policy.off_policy``'s.
"""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import TYPE_CHECKING, Final

from coordinator.control.model_router import case_of, hours
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.policy.off_policy import LoggedChoice, evaluate
from coordinator.policy.rival_routers import POLICIES, policy_named
from coordinator.policy.routing import net_usd

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from coordinator.domain.control_settings import RouterSettings
    from coordinator.policy.exploration import Chance
    from coordinator.policy.off_policy import PolicyEstimate
    from coordinator.policy.routing import Arm, RoutingContext, RoutingPolicy

PLAIN: Final = ("cheapest", "dearest", "uniform")
"""Policies that learn nothing, beside the name of any model, which is that one always."""


def replayed(rows: Sequence[sqlite3.Row], name: str, settings: RouterSettings, seed: int = 0) -> PolicyEstimate:
    """``rows`` are settled decisions, oldest first. Raises ``BadInput`` for a policy that is none."""
    decided = [row for row in rows if not row["pinned"] and len(json.loads(row["arms"])) > 1]
    known = {arm.name for row in decided for arm in case_of(row)[1]}
    if name not in (*POLICIES, *PLAIN, *known):
        expected = ", ".join((*POLICIES, *PLAIN, *sorted(known)))
        raise BadInput(
            [Problem(file=name, message="is no policy and no model that was ever chosen from", expected=expected)]
        )
    policy = policy_named(name, drift=settings.drift, floor=settings.floor) if name in POLICIES else None
    chance = random.Random(seed)
    return evaluate([_choice(row, name, policy, chance) for row in decided])


def _choice(row: sqlite3.Row, name: str, policy: RoutingPolicy | None, chance: Chance) -> LoggedChoice:
    context, arms = case_of(row)
    by_name = {arm.name: arm for arm in arms}
    landed = bool(row["landed"])
    hour = hours(datetime.fromisoformat(row["at"]))
    if policy is not None:
        other = policy.propensities(context, arms, hour, chance)
        policy.learn(context, by_name[row["arm"]], landed, hour)
    else:
        other = _plain(name, arms)
    return LoggedChoice(
        arm=row["arm"],
        cell=_cell(context),
        costs={arm.name: arm.cost_usd + arm.delay_usd for arm in arms},
        net_usd=net_usd(context, by_name[row["arm"]], landed),
        other=dict(zip(by_name, other, strict=True)),
        propensities=dict(zip(by_name, json.loads(row["propensities"]), strict=True)),
    )


def _plain(name: str, arms: Sequence[Arm]) -> tuple[float, ...]:
    """``name`` is of ``PLAIN`` or an arm; where that arm was not to be had, the cheapest stands in."""
    if name == "uniform":
        return (1.0 / len(arms),) * len(arms)
    numbers = range(len(arms))
    if name == "dearest":
        best = max(numbers, key=lambda number: arms[number].cost_usd)
    else:
        best = min(numbers, key=lambda number: (arms[number].name != name, arms[number].cost_usd))
    return tuple(float(number == best) for number in numbers)


def _cell(context: RoutingContext) -> str:
    return f"{context.kind}, {min(context.attempt, 2)}"

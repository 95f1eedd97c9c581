"""The verbs about which models attempts are given: router show, router replay, router judge.

Owns one invariant: what is shown is what was decided and what came of it, from the store; a comparison that cannot tell says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import NoArguments, Reach, Reply, Verb, operand
from coordinator.api.view import DIM, GOOD, WARN, Line, line, span, table, wrap
from coordinator.control.replay import replayed
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.api.desk import Desk

_MOST: Final = 50_000
"""Decisions that a comparison looks at, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayArguments:
    policy: str = operand(
        "thompson, linucb, epsilon_greedy, first, cheapest, dearest, uniform or a model", metavar="POLICY"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkVerdictArguments:
    task: str = operand("a task of which an attempt has an outcome", metavar="ID")
    verdict: str = operand("good or bad", metavar="VERDICT")


async def show(desk: Desk, _: NoArguments) -> Reply:
    rows = [dict(row) for row in desk.rows("decisions_by_arm")]
    settings = desk.settings.router
    return Reply(data={"arms": rows, "floor": settings.floor, "policy": settings.policy})


def show_arms(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["arms"]:
        text = (
            'No attempt had a choice of models yet: models = ["…", "…"] in a role card, or [router.models], gives one.'
        )
        return wrap(text, width, style=DIM)
    rows = [
        (
            one["arm"],
            one["kind"],
            str(one["chosen"]),
            f"{one['landed'] or 0} of {one['known']}" if one["known"] else "",
            f"{one['quality']:.2f}" if one["quality"] is not None else "",
            f"{one['cost_usd']:.2f}",
            f"{one['pinned']} named by their task" if one["pinned"] else "",
        )
        for one in data["arms"]
    ]
    head = ("model", "kind", "chosen", "landed", "quality", "USD", "")
    said = f"policy {data['policy']}, {100 * data['floor']:g} % of choices by price alone"
    return [*table(head, rows, width), line(span(said, DIM))]


async def replay(desk: Desk, asked: ReplayArguments) -> Reply:
    rows = desk.rows("decisions_settled", limit=_MOST)[::-1]
    found = replayed(rows, asked.policy, desk.settings.router)
    return Reply(data={"policy": asked.policy, **asdict(found)})


def show_replay(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["effective"]:
        return wrap(f"It cannot be told: {data['why']}.", width, style=WARN)
    was, other = f"${data['was_usd']:.3f}", f"${data['other_usd']:.3f} ±{data['other_half_usd']:.3f}"
    difference = f"${data['difference_usd']:+.3f} ±{data['difference_half_usd']:.3f}"
    counted = f"{data['decisions']} decisions, which weigh as much as {data['effective']:.0f}"
    lines = wrap(f"{data['policy']}: {other} net a decision; what was chosen brought {was}.", width)
    lines += wrap(f"The difference is {difference} (95 %), from {counted}.", width)
    if data["why"]:
        return [*lines, *wrap(f"It cannot be told: {data['why']}.", width, style=WARN)]
    better = data["policy"] if data["difference_usd"] > 0 else "What was chosen"
    return [*lines, *wrap(f"{better} is better.", width, style=GOOD)]


async def judge(desk: Desk, asked: WorkVerdictArguments) -> Reply:
    if asked.verdict not in ("good", "bad"):
        raise BadInput([Problem(file=asked.verdict, message="is no verdict", expected="good or bad")])
    if desk.live is None:
        raise DaemonUnreachable("no daemon is running here; `coordinator run` starts one")
    arm = desk.live.feedback.judge(asked.task, asked.verdict == "good")
    return Reply(data={"arm": arm, "task": asked.task, "verdict": asked.verdict})


def show_judge(data: Mapping[str, Any], width: int) -> list[Line]:
    return wrap(f"{data['task']} is {data['verdict']}; {data['arm']} did it, and it counts there.", width, style=GOOD)


VERBS = (
    Verb(
        name="router judge",
        arguments=WorkVerdictArguments,
        call=judge,
        doc="Say of a task's work that it was good or bad; the router believes you more than the gate.",
        example="coordinator router judge add-cache bad",
        reach=Reach.DAEMON,
        show=show_judge,
    ),
    Verb(
        name="router replay",
        arguments=ReplayArguments,
        call=replay,
        doc="What another policy would have brought, from the decisions that were made.",
        example="coordinator router replay cheapest",
        show=show_replay,
    ),
    Verb(
        name="router show",
        arguments=NoArguments,
        call=show,
        doc="Which models attempts were given, and what came of it.",
        show=show_arms,
    ),
)

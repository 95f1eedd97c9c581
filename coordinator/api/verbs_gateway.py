"""The verbs for who runs the gateway: its upstreams, and what holds calls back from them.

Owns one invariant: what is changed is told on the bus with who changed it and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.api.verb import NoArguments, Reach, Reply, Verb, operand, option
from coordinator.api.view import BAD, GOOD, WARN, Line, line, span, wrap
from coordinator.domain.errors import DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.api.desk import Desk
    from coordinator.gateway.gateway import Gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseArguments:
    name: str = operand("the upstream", metavar="NAME")
    reason: str = option("why, for whoever asks later", default="", short="-m", metavar="TEXT")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamArguments:
    name: str = operand("the upstream", metavar="NAME")


def _gateway(desk: Desk) -> Gateway:
    if desk.live is None:
        raise DaemonUnreachable("no daemon is running here; `coordinator run` starts one")
    return desk.live.gateway


async def upstreams(desk: Desk, _: NoArguments) -> Reply:
    return Reply(data={"upstreams": await _gateway(desk).ask(lambda engine: engine.upstreams())})


def show_upstreams(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["upstreams"]:
        return [line(span("No upstream can be used; `coordinator doctor` says why.", WARN))]
    lines: list[Line] = []
    for one in data["upstreams"]:
        held = one["held_by"]
        limit = f" of {one['limit']}" if one["limit"] is not None else ""
        counts = f"{one['in_flight']}{limit} under way, {one['waiting']} waiting"
        if one["pace_per_s"] is not None:
            counts += f", {one['pace_per_s']:.3g} calls/s"
        style = WARN if held or one["breakers"] else GOOD
        lines += wrap(f"{one['name']}  {counts}  ({one['url']})", width, indent=4, style=style)
        if held:
            lines += wrap(held, width, indent=4, first="    ")
        for breaker in one["breakers"]:
            text = f"breaker of {breaker['model'] or 'calls without a model'} is {breaker['state']}: {breaker['why']}"
            lines += wrap(text, width, indent=4, first="    ", style=BAD)
    return lines


async def pause(desk: Desk, asked: PauseArguments) -> Reply:
    reason = asked.reason or "paused by the operator"
    await _gateway(desk).ask(lambda engine: engine.pause(asked.name, reason))
    return Reply(data={"name": asked.name, "paused": True})


async def resume(desk: Desk, asked: UpstreamArguments) -> Reply:
    await _gateway(desk).ask(lambda engine: engine.resume(asked.name))
    return Reply(data={"name": asked.name, "paused": False})


def show_pause(data: Mapping[str, Any], width: int) -> list[Line]:
    said = "takes no call until it is resumed" if data["paused"] else "takes calls again"
    return wrap(f"{data['name']} {said}", width, style=WARN if data["paused"] else GOOD)


VERBS = (
    Verb(
        name="upstreams list",
        arguments=NoArguments,
        call=upstreams,
        doc="Where model calls go, and what holds them back.",
        reach=Reach.DAEMON,
        show=show_upstreams,
    ),
    Verb(
        name="upstreams pause",
        arguments=PauseArguments,
        call=pause,
        doc="Send no call to an upstream until it is resumed.",
        reach=Reach.DAEMON,
        show=show_pause,
    ),
    Verb(
        name="upstreams resume",
        arguments=UpstreamArguments,
        call=resume,
        doc="Send calls to it again, a few at first.",
        reach=Reach.DAEMON,
        show=show_pause,
    ),
)

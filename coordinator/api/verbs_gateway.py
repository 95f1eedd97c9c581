"""The verbs for who runs the gateway: its upstreams, and the knobs that act while calls pass.

Owns one invariant: what is changed is told on the bus with who changed it and why. A changed knob lasts until the daemon ends;
what is to last longer belongs into the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.api.verb import NoArguments, Reach, Reply, Verb, operand, option
from coordinator.api.view import BAD, DIM, GOOD, WARN, Line, line, span, table, wrap
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.problem import Problem
from coordinator.domain.settings import GatewaySettings

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


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobArguments:
    name: str = operand("the knob", metavar="NAME")
    value: str = operand("a number within its bounds", metavar="VALUE")
    reason: str = option("why, for whoever asks later", default="", short="-m", metavar="TEXT")


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


async def knobs(desk: Desk, _: NoArguments) -> Reply:
    return Reply(data={"knobs": await _gateway(desk).ask(lambda engine: engine.knobs())})


def show_knobs(data: Mapping[str, Any], width: int) -> list[Line]:
    rows = [
        (one["name"], f"{one['value']:g}", f"{one['minimum']:g} to {one['maximum']:g}", one["about"])
        for one in data["knobs"]
    ]
    return table(("knob", "value", "bounds", ""), rows, width)


async def turn(desk: Desk, asked: KnobArguments) -> Reply:
    try:
        value = float(asked.value)
    except ValueError:
        raise BadInput([Problem(file=asked.name, message=f"{asked.value!r} is no number")]) from None
    reason = asked.reason or "by hand"
    await _gateway(desk).ask(lambda engine: engine.turn(asked.name, value, "operator", reason))
    return Reply(data={"name": asked.name, "value": value})


def show_turn(data: Mapping[str, Any], width: int) -> list[Line]:
    text = f"{data['name']} is {data['value']:g} until the daemon ends"
    kept = data["name"] in GatewaySettings.__dataclass_fields__
    more = "To keep it, set it in [gateway] of coordinator.toml." if kept else "The next one begins as this one did."
    return [*wrap(text, width, style=GOOD), line(span(more, DIM))]


VERBS = (
    Verb(
        name="knobs list",
        arguments=NoArguments,
        call=knobs,
        doc="List the numbers that may be changed while calls pass.",
        reach=Reach.DAEMON,
        show=show_knobs,
    ),
    Verb(
        name="knobs set",
        arguments=KnobArguments,
        call=turn,
        doc="Change one of them, until the daemon ends.",
        example="coordinator knobs set hold_s 60 -m 'agents time out'",
        reach=Reach.DAEMON,
        show=show_turn,
    ),
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

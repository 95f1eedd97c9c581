"""The verbs about knobs: what may be changed while the daemon runs, who changed it and why, and what must stay.

Owns one invariant: a person's word goes through the one board, so that it is recorded, told on the bus and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import NoArguments, Reach, Reply, Verb, operand, option
from coordinator.api.view import BAD, DIM, GOOD, WARN, Line, facts, line, local_time, span, table, wrap
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from coordinator.api.desk import Desk
    from coordinator.control.knob_board import KnobBoard

_DEFAULT: Final = "default"
_MOST: Final = 10_000
_SHOWN: Final = 10
_STYLES: Final[Mapping[str, str]] = {"aborted": DIM, "dry run": DIM, "kept": GOOD, "on trial": WARN, "reverted": BAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobNamed:
    name: str = operand("the knob", metavar="NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobArguments:
    name: str = operand("the knob", metavar="NAME")
    value: str = operand("a number within its bounds, or `default`", metavar="VALUE")
    reason: str = option("why, for whoever asks later", default="", short="-m", metavar="TEXT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesArguments:
    limit: int = option("the last N", default=20, short="-n", metavar="N")
    knob: str = option("only those of a knob", default="", metavar="NAME")


def board_of(desk: Desk) -> KnobBoard:
    if desk.live is None:
        raise DaemonUnreachable("no daemon is running here; `coordinator run` starts one")
    return desk.live.knobs


async def knobs(desk: Desk, _: NoArguments) -> Reply:
    board = board_of(desk)
    return Reply(data={"frozen": board.frozen, "knobs": await board.list()})


def show_knobs(data: Mapping[str, Any], width: int) -> list[Line]:
    rows = [
        (one["name"], f"{one['value']:g}", f"{one['minimum']:g} to {one['maximum']:g}", ", ".join(_said(one)))
        for one in data["knobs"]
    ]
    frozen = wrap("All are frozen: only a person changes any.", width, style=WARN) if data["frozen"] else []
    return [*frozen, *table(("knob", "value", "bounds", ""), rows, width)]


def _said(one: Mapping[str, Any]) -> list[str]:
    usual = [f"default {one['default']:g}"] if one["value"] != one["default"] else []
    return [*usual, *(["pinned"] if one["pinned"] else []), one["kind"], one["about"]]


async def knob(desk: Desk, asked: KnobNamed) -> Reply:
    board = board_of(desk)
    described = board.describe(await board.reading(asked.name))
    return Reply(data={**described, "changes": _changes(desk, asked.name, _SHOWN), "frozen": board.frozen})


def show_knob(data: Mapping[str, Any], width: int) -> list[Line]:
    unit = data["unit"] and f" {data['unit']}"
    held = "pinned" if data["pinned"] else "frozen, with all others" if data["frozen"] else ""
    pairs = [
        ("value", f"{data['value']:g}{unit}" + (f" ({held})" if held else "")),
        ("default", f"{data['default']:g}"),
        ("bounds", f"{data['minimum']:g} to {data['maximum']:g}, by {data['step']:g}"),
        ("moved by", _MOVED_BY[data["kind"]]),
        ("seen after", f"{data['settle_s']:g} s"),
    ]
    head = wrap(f"{data['name']}: {data['about']}", width)
    return [*head, *facts(pairs, width), line(), *show_changes(data, width)]


_MOVED_BY: Final[Mapping[str, str]] = {
    "block": "alternating blocks of time, and by a person",
    "fixed": "a person only",
    "probe": "short tests on what is delivered, and by a person",
    "servo": "a controller, and by a person",
    "typed": "errors by their type, and by a person",
}


async def turn(desk: Desk, asked: KnobArguments) -> Reply:
    try:
        value = None if asked.value == _DEFAULT else float(asked.value)
    except ValueError:
        raise BadInput([Problem(file=asked.name, message=f"{asked.value!r} is no number")]) from None
    new = await board_of(desk).set(asked.name, value, asked.reason or "by hand")
    return Reply(data={"name": asked.name, "value": new})


def show_turn(data: Mapping[str, Any], width: int) -> list[Line]:
    text = f"{data['name']} is {data['value']:g}"
    more = f"It stays so over restarts, unless its default is changed. `coordinator knobs set {data['name']} default` ends it."
    return [*wrap(text, width, style=GOOD), *wrap(more, width, style=DIM)]


async def pin(desk: Desk, asked: KnobNamed) -> Reply:
    await board_of(desk).pin(asked.name, True)
    return Reply(data={"name": asked.name, "pinned": True})


async def unpin(desk: Desk, asked: KnobNamed) -> Reply:
    await board_of(desk).pin(asked.name, False)
    return Reply(data={"name": asked.name, "pinned": False})


def show_pin(data: Mapping[str, Any], width: int) -> list[Line]:
    said = "is turned by nobody but a person" if data["pinned"] else "may be turned by the loop again"
    return wrap(f"{data['name']} {said}", width, style=WARN if data["pinned"] else GOOD)


async def freeze(desk: Desk, _: NoArguments) -> Reply:
    board_of(desk).freeze(True)
    return Reply(data={"frozen": True})


async def unfreeze(desk: Desk, _: NoArguments) -> Reply:
    board_of(desk).freeze(False)
    return Reply(data={"frozen": False})


def show_freeze(data: Mapping[str, Any], width: int) -> list[Line]:
    said = "The loop turns no knob any more." if data["frozen"] else "The loop may turn knobs that are not pinned."
    return wrap(said, width, style=WARN if data["frozen"] else GOOD)


async def attempt(desk: Desk, asked: KnobArguments) -> Reply:
    board = board_of(desk)
    assert desk.live is not None
    reading = await board.reading(asked.name)
    name, _, upstream = asked.name.partition("@")
    if name != "calls" or not upstream:
        raise BadInput([Problem(file=asked.name, message="cannot be tried", expected="calls@ and an upstream")])
    try:
        value = float(asked.value)
    except ValueError:
        raise BadInput([Problem(file=asked.name, message=f"{asked.value!r} is no number")]) from None
    if fault := reading.knob.fault(value):
        raise BadInput([Problem(file=asked.name, message=fault, expected="a value within its bounds")])
    tuning = desk.live.tuning
    if not tuning.on or not board.may_turn(reading):
        raise BadInput([Problem(file=asked.name, message="nobody turns it but you", expected=_TRYABLE)])
    if not tuning.limits.advise(upstream, int(value), asked.reason or "a person would like to know"):
        raise BadInput([Problem(file=asked.name, message="no call went there yet")])
    return Reply(data={"name": asked.name, "value": value})


_TRYABLE: Final = "[control] tuning on or --self-improve, the knob not pinned and the loop not frozen"


def show_attempt(data: Mapping[str, Any], width: int) -> list[Line]:
    text = f"{data['name']} is to be tried at {data['value']:g} when enough calls are under way; `coordinator changes` tells"
    return wrap(text, width, style=GOOD)


# -- changes -------------------------------------------------------------------------------------------------------


async def changes(desk: Desk, asked: ChangesArguments) -> Reply:
    return Reply(data={"changes": _changes(desk, asked.knob, min(max(asked.limit, 0), _MOST))})


def _changes(desk: Desk, name: str, limit: int) -> list[dict[str, Any]]:
    if name:
        return [_change(row) for row in desk.rows("knob_changes_of", knob=name, limit=limit)]
    return [_change(row) for row in desk.rows("knob_changes", limit=limit)]


def _change(row: sqlite3.Row) -> dict[str, Any]:
    return dict(row)


def show_changes(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["changes"]:
        return [line(span("Nothing was changed.", DIM))]
    lines: list[Line] = []
    for one in data["changes"]:
        trial = f"; {one['trial']}" if one["trial"] else ""
        outcome = f": {one['outcome']}" if one["outcome"] else ""
        text = (
            f"{one['number']}  {local_time(one['at'])}  {one['knob']} {one['old']:g} to {one['new']:g} by {one['author']}"
            f" ({one['why']}{trial}), {one['verdict']}{outcome}"
        )
        lines += wrap(text, width, indent=4, style=_STYLES[one["verdict"]])
    return lines


VERBS = (
    Verb(
        name="changes",
        arguments=ChangesArguments,
        call=changes,
        doc="Which knobs were turned, by whom and why, and what came of it.",
        show=show_changes,
    ),
    Verb(
        name="knobs freeze",
        arguments=NoArguments,
        call=freeze,
        doc="Let the loop turn no knob until `knobs unfreeze`, also over restarts.",
        reach=Reach.DAEMON,
        show=show_freeze,
    ),
    Verb(
        name="knobs list",
        arguments=NoArguments,
        call=knobs,
        doc="List the numbers that may be changed while the daemon runs.",
        reach=Reach.DAEMON,
        show=show_knobs,
    ),
    Verb(
        name="knobs pin",
        arguments=KnobNamed,
        call=pin,
        doc="Let nobody but a person turn a knob.",
        reach=Reach.DAEMON,
        show=show_pin,
    ),
    Verb(
        name="knobs set",
        arguments=KnobArguments,
        call=turn,
        doc="Change one of them, also for daemons to come.",
        example="coordinator knobs set hold_s 60 -m 'agents time out'",
        reach=Reach.DAEMON,
        show=show_turn,
    ),
    Verb(
        name="knobs show",
        arguments=KnobNamed,
        call=knob,
        doc="What a knob does, who moves it, and its last changes.",
        example="coordinator knobs show hold_s",
        reach=Reach.DAEMON,
        show=show_knob,
    ),
    Verb(
        name="knobs try",
        arguments=KnobArguments,
        call=attempt,
        doc="Try a value for half a minute; it is kept if the upstream delivers more with it.",
        example="coordinator knobs try calls@anthropic 20",
        reach=Reach.DAEMON,
        show=show_attempt,
    ),
    Verb(
        name="knobs unfreeze",
        arguments=NoArguments,
        call=unfreeze,
        doc="Let the loop turn knobs again.",
        reach=Reach.DAEMON,
        show=show_freeze,
    ),
    Verb(
        name="knobs unpin",
        arguments=KnobNamed,
        call=unpin,
        doc="Let the loop turn it again.",
        reach=Reach.DAEMON,
        show=show_pin,
    ),
)

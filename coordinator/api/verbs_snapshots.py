"""The verbs about snapshots: sets of values that all knobs had together, and what the time under each was worth.

Owns one invariant: to restore one is a person's change of each knob that differs: recorded, and announced as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.api.verb import NoArguments, Reach, Reply, Verb, operand
from coordinator.api.verbs_knobs import board_of
from coordinator.api.view import DIM, GOOD, WARN, Line, line, local_time, plural, span, table, wrap
from coordinator.control.snapshot_store import differences, snapshots
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.api.desk import Desk


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotArguments:
    version: int = operand("its number", metavar="VERSION")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffArguments:
    old: int = operand("one", metavar="VERSION")
    new: int = operand("the other", metavar="VERSION")


def _known(desk: Desk) -> list[dict[str, Any]]:
    return snapshots(desk.rows("knob_snapshots"), desk.settings.control)


def _values(desk: Desk, version: int) -> Mapping[str, float]:
    for one in _known(desk):
        if one["version"] == version:
            found: Mapping[str, float] = one["values"]
            return found
    raise BadInput(
        [Problem(file=str(version), message="is no snapshot", expected="one of coordinator knobs snapshots")]
    )


async def listed(desk: Desk, _: NoArguments) -> Reply:
    return Reply(data={"objective": desk.settings.control.objective, "snapshots": _known(desk)})


def show_listed(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["snapshots"]:
        return [line(span("No snapshot was taken yet.", DIM))]
    unit = "landed an hour" if data["objective"] == "landed" else "$ an hour"
    rows = [
        (str(one["version"]), local_time(one["at"]), ", ".join(_worth(one)), one["source"]) for one in data["snapshots"]
    ]
    return table(("", "since", unit, "after"), rows, width)


def _worth(one: Mapping[str, Any]) -> list[str]:
    return [
        f"{context} {worth:.3g}{' (best)' if context in one['best'] else ''}"
        for context, worth in one["worth"].items()
        if context != "idle"
    ]


async def diff(desk: Desk, asked: DiffArguments) -> Reply:
    found = differences(_values(desk, asked.old), _values(desk, asked.new))
    return Reply(data={"differences": found, "new": asked.new, "old": asked.old})


def show_diff(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["differences"]:
        return [line(span("They are the same.", GOOD))]
    rows = [(one["knob"], _value(one["old"]), _value(one["new"])) for one in data["differences"]]
    return table(("knob", str(data["old"]), str(data["new"])), rows, width)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


async def restore(desk: Desk, asked: SnapshotArguments) -> Reply:
    board, wanted, turned = board_of(desk), _values(desk, asked.version), []
    for name, one in (await board.readings()).items():
        value = wanted.get(name)
        if value is not None and value != one.value and not one.knob.fault(value):
            await board.set(name, value, f"snapshot {asked.version} is restored")
            turned.append(name)
    return Reply(data={"turned": turned, "version": asked.version})


def show_restore(data: Mapping[str, Any], width: int) -> list[Line]:
    count = len(data["turned"])
    said = f"{plural(count, 'knob')} set: {', '.join(data['turned'])}" if count else "All are as they were then."
    return wrap(said, width, style=GOOD if count else WARN)


VERBS = (
    Verb(
        name="knobs diff",
        arguments=DiffArguments,
        call=diff,
        doc="In which knobs two snapshots differ.",
        example="coordinator knobs diff 3 5",
        show=show_diff,
    ),
    Verb(
        name="knobs restore",
        arguments=SnapshotArguments,
        call=restore,
        doc="Set all knobs as they were in a snapshot.",
        example="coordinator knobs restore 3",
        reach=Reach.DAEMON,
        show=show_restore,
    ),
    Verb(
        name="knobs snapshots",
        arguments=NoArguments,
        call=listed,
        doc="Which values knobs had together, what that was worth, and the best by how busy it was.",
        show=show_listed,
    ),
)

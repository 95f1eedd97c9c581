"""The verbs about what is watched: telemetry of a window, and incidents.

Owns one invariant: what has no sample is shown as a dash, never as zero. With a daemon the windows end now; without one they
end with the last minute that was kept, and say so.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import Reply, Verb, operand, option
from coordinator.api.view import (
    BAD,
    DIM,
    GOOD,
    STRONG,
    WARN,
    Line,
    duration,
    facts,
    line,
    local_time,
    plural,
    span,
    table,
    wrap,
)
from coordinator.control.recording import replay
from coordinator.control.telemetry_bus import HOUR_S
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.policy.telemetry import MINUTE_S, WINDOWS_S, figures_of
from coordinator.policy.telemetry_cell import TelemetryCell

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from coordinator.api.desk import Desk

_DAY_S: Final = 86_400.0
_LONG_S: Final[Mapping[str, float]] = {"1d": _DAY_S, "7d": 7 * _DAY_S, "30d": 30 * _DAY_S}
"""Windows of whole hours, from the ledger."""
_MOST: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryArguments:
    replay: str = option(
        "instead, replay a recording ([control] record) and show the incidents in it",
        default="",
        metavar="FILE",
        path=True,
    )
    window: str = option("of how long", choices=(*WINDOWS_S, *_LONG_S), default="5m", metavar="TIME")


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentsArguments:
    limit: int = option("the last N", default=20, short="-n", metavar="N")
    open: bool = option("only those that go on", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentArguments:
    number: int = operand("its number", metavar="NUMBER")


async def telemetry(desk: Desk, asked: TelemetryArguments) -> Reply:
    if asked.replay:
        return Reply(data=await asyncio.to_thread(_replayed, asked.replay))
    if desk.live is not None and asked.window in WINDOWS_S:
        return Reply(data={"until": None, "window": asked.window, **desk.live.telemetry.figures(asked.window)})
    long_s = _LONG_S.get(asked.window)
    window_s = long_s or WINDOWS_S[asked.window]
    span_s = HOUR_S if long_s else MINUTE_S
    last = desk.rows("telemetry_last", span_s=span_s)
    cell, until = TelemetryCell(), None
    if last:
        until = desk.clock.now().isoformat() if long_s else last[0]["at"]
        since = (datetime.fromisoformat(until) - timedelta(seconds=window_s)).isoformat()
        for row in desk.rows("telemetry_since", span_s=span_s, since=since):
            cell.merge(TelemetryCell.from_json(json.loads(row["data"])))
        cell.standings.clear()  # how things stood then is not how they stand
    return Reply(data={"until": until, "window": asked.window, **figures_of(cell, window_s)})


def _replayed(name: str) -> dict[str, Any]:
    try:
        with Path(name).open(encoding="utf-8") as file:
            found = replay(file, name)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput([Problem(file=name, message=f"cannot be read: {error}")]) from error
    return {"incidents": [one.to_json() for one in found]}


def show_telemetry(data: Mapping[str, Any], width: int) -> list[Line]:
    if "incidents" in data:
        return _show_replayed(data["incidents"], width)
    over = f"the last {data['window']}" + (f" until {local_time(data['until'])}" if data["until"] else "")
    lines = wrap(f"{plural(data['calls'], 'model call')} in {over}", width, style=STRONG)
    lines += facts(
        [
            ("calls", f"{data['calls_per_s']:.3g} per s, {_number(data['tokens_per_s'])} output tokens per s"),
            ("errors", _errors(data)),
            ("shared", f"cache {_share(data['cache_rate'])}, in flight {_share(data['dedup_rate'])}"),
            ("cost", f"{_usd(data['cost_usd'])}, {_usd(data['cost_usd_per_min'])} per min"),
            ("gate", f"{_share(data['gate_pass_rate'])} passed; {_share(data['landing_rate'])} of attempts landed"),
            ("agents", f"{_number(data['agents_busy'])} busy"),
        ],
        width,
    )
    depth = ", ".join(f"{count:g} {stage}" for stage, count in data["depth"].items() if count)
    lines += facts([("stages", depth)], width) if depth else []
    open_now = ", ".join(name for name, count in data["breakers"].items() if count)
    lines += facts([("breakers", f"not closed: {open_now}")], width) if open_now else []
    return [*lines, line(), *_spread_rows(data, width)]


def _spread_rows(data: Mapping[str, Any], width: int) -> list[Line]:
    named = [(name, values) for name, values in data["spreads"].items()]
    named += [(f"first_token_s, {name}", one["first_token_s"]) for name, one in data["upstreams"].items()]
    named += [(f"token_s, {name}", one["token_s"]) for name, one in data["roles"].items()]
    rows = [
        (name, *(("-", "-", "-", "none") if values is None else (*_quantiles(values), str(values["count"]))))
        for name, values in named
    ]
    return table(("seconds", "p50", "p95", "p99", "of"), rows, width)


def _quantiles(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{values[name]:.3g}" for name in ("p50", "p95", "p99"))


def _errors(data: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in data["errors"].items())
    return f"{_share(data['error_rate'])} of calls" + (f" ({kinds})" if kinds else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _usd(value: float | None) -> str:
    return "-" if value is None else f"${value:.4f}"


def _show_replayed(incidents: list[Mapping[str, Any]], width: int) -> list[Line]:
    if not incidents:
        return [line(span("The recording has no incident.", GOOD))]
    lines: list[Line] = []
    for one in incidents:
        how = f"after {duration(one['ended_s'] - one['began_s'])} over" if one["ended_s"] is not None else "goes on"
        text = f"{one['number']}: {one['cause']}, {one['size']}: {', '.join(one['metrics'])} ({how})"
        lines += wrap(text, width, indent=4, style=_style(one))
    return lines


# -- incidents -----------------------------------------------------------------------------------------------------


async def incidents(desk: Desk, asked: IncidentsArguments) -> Reply:
    limit = min(max(asked.limit, 0), _MOST)
    rows = desk.rows("incidents_open") if asked.open else desk.rows("incidents", limit=limit)
    return Reply(data={"incidents": [incident_of(row) for row in rows]})


async def incident(desk: Desk, asked: IncidentArguments) -> Reply:
    rows = desk.rows("incident_get", number=asked.number)
    if not rows:
        raise BadInput(
            [Problem(file=str(asked.number), message="is no incident", expected="coordinator incidents list")]
        )
    return Reply(data=incident_of(rows[0]))


def incident_of(row: sqlite3.Row) -> dict[str, Any]:
    head = {key: row[key] for key in ("number", "began", "ended", "level", "cause")}
    return {**head, **json.loads(row["data"])}


def _style(one: Mapping[str, Any]) -> str:
    if one.get("ended") or one.get("ended_s") is not None:
        return DIM
    return BAD if one["level"] == "critical" else WARN


def show_incidents(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["incidents"]:
        return [line(span("No incident is known.", GOOD))]
    rows = [
        (str(one["number"]), local_time(one["began"]), _lasted(one), one["level"], f"{one['cause']}: {one['size']}")
        for one in data["incidents"]
    ]
    return table(("", "began", "lasted", "level", "what"), rows, width, [_style(one) for one in data["incidents"]])


def _lasted(one: Mapping[str, Any]) -> str:
    if not one["ended"]:
        return "goes on"
    return duration((datetime.fromisoformat(one["ended"]) - datetime.fromisoformat(one["began"])).total_seconds())


def show_incident(data: Mapping[str, Any], width: int) -> list[Line]:
    lines = wrap(f"incident {data['number']}: {data['cause']}", width, style=_style(data))
    pairs = [("began", local_time(data["began"])), ("lasted", _lasted(data)), ("level", data["level"])]
    if data["change"]:
        pairs.append(("changed", data["change"]))
    lines += [*facts(pairs, width), line()]
    rows = [
        (
            one["metric"],
            one["scope"],
            one["role"],
            local_time(one["began"], date=False),
            f"{_lasted(one)}: {one['size']}",
        )
        for one in data["alarms"]
    ]
    return [*lines, *table(("metric", "upstream", "role", "from", "lasted and size"), rows, width)]


VERBS = (
    Verb(
        name="incidents list",
        arguments=IncidentsArguments,
        call=incidents,
        doc="What was not as usual, and what goes on.",
        show=show_incidents,
    ),
    Verb(
        name="incidents show",
        arguments=IncidentArguments,
        call=incident,
        doc="Which metrics an incident consists of, since when and how far.",
        example="coordinator incidents show 3",
        show=show_incident,
    ),
    Verb(
        name="telemetry",
        arguments=TelemetryArguments,
        call=telemetry,
        doc="Calls, times, errors, cost, gate and stages over a window of time.",
        example="coordinator telemetry --window 1h",
        show=show_telemetry,
    ),
)

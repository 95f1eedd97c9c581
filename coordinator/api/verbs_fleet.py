"""The verbs about the running fleet and its self-test: agents list, events, race.

Owns one invariant: what is shown of a living process is verified (pid and start time), never only read from a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.api.activity import shown_of, usage
from coordinator.api.desk import LiveAgent
from coordinator.api.phrase import phrase
from coordinator.api.verb import NoArguments, Reach, Reply, Verb, option
from coordinator.api.view import (
    BAD,
    DIM,
    GOOD,
    WARN,
    Line,
    cut,
    duration,
    line,
    local_time,
    pad,
    plural,
    span,
    table,
    wrap,
)
from coordinator.domain import event as happened
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.problem import Problem
from coordinator.fleet import sighting
from coordinator.kit import lock
from coordinator.policy.health import TROUBLED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Iterator, Mapping

    from coordinator.api.desk import Desk


# -- agents --------------------------------------------------------------------------------------------------------


async def list_agents(desk: Desk, _: NoArguments) -> Reply:
    agents = desk.live.agents() if desk.live is not None else tuple(await asyncio.to_thread(_found_alive, desk))
    rows = [asdict(agent) for agent in agents]
    outside = [_outsider(desk, row) for row in desk.rows("tasks_by_state", state="running")]
    names = {agent.name for agent in agents}
    return Reply(data={"agents": rows, "outside": [one for one in outside if one and one["agent"] not in names]})


def _found_alive(desk: Desk) -> Iterator[LiveAgent]:
    """Agent processes that outlived their daemon, from what they wrote about themselves."""
    host = lock.own_identity()[0]
    claims = _held_claims(desk)
    for path in sorted(desk.layout.agents.glob("*.json")):
        data = lock.read_object(path) or {}
        with contextlib.suppress(KeyError, TypeError, ValueError):
            name, pid = str(data["agent"]), int(data["pid"])
            if lock.same_process_alive(pid, str(data["started"]), str(data["boot"]), host):
                yield claims.get((name, pid)) or LiveAgent(name=name, pid=pid, since_s=0.0)


def _held_claims(desk: Desk) -> dict[tuple[str, int], LiveAgent]:
    """Who holds a claim right now, by name and pid."""
    found = {}
    for state in ("claimed", "running"):
        for row in desk.rows("tasks_by_state", state=state):
            seen = sighting.look(desk.layout, row["id"], row["generation"])
            if seen.record is None or not seen.held:
                continue
            found[seen.record.agent, seen.record.pid] = LiveAgent(
                name=seen.record.agent,
                doing=seen.doing,
                generation=row["generation"],
                note=seen.note,
                pid=seen.record.pid,
                since_s=_since_s(desk, row),
                task=row["id"],
                title=row["title"],
                **shown_of(seen.vitals),
            )
    return found


def _since_s(desk: Desk, row: sqlite3.Row) -> float:
    times = [one["claimed_at"] for one in desk.rows("attempts_of", task=row["id"]) if one["claimed_at"]]
    if not times:
        return 0.0
    return max(0.0, (desk.clock.now() - datetime.fromisoformat(times[-1])).total_seconds())


def _outsider(desk: Desk, row: sqlite3.Row) -> dict[str, Any] | None:
    seen = sighting.look(desk.layout, row["id"], row["generation"])
    if seen.record is None or not seen.held:
        return None
    who = {"agent": seen.record.agent, "pid": seen.record.pid, "host": seen.record.host, "task": row["id"]}
    return {**who, **shown_of(seen.vitals)}


def show_agents(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = []
    if data["agents"]:
        rows = [
            [
                agent["name"],
                str(agent["pid"]),
                agent["doing"] or "idle",
                duration(agent["since_s"]),
                agent["task"] or "-",
            ]
            for agent in data["agents"]
        ]
        head, *each = table(["AGENT", "PID", "DOING", "SINCE", "TASK"], rows, width)
        lines.append(head)
        for agent, row in zip(data["agents"], each, strict=True):
            lines += [row, *_vital_lines(agent, width)]
    for one in data["outside"]:
        told = "".join(f", {part}" for part in (one["activity"], usage(one)) if part)
        who = f"{one['agent']} (from outside, pid {one['pid']} on {one['host']})"
        lines += wrap(f"{who}: {one['task']}{told}", width, indent=4)
    return lines or [line("no agents are running; they are started when there is work")]


def _vital_lines(agent: Mapping[str, Any], width: int) -> list[Line]:
    """What it does and uses; and why that worries us, when it does."""
    told = ", ".join(filter(None, (agent["activity"], usage(agent))))
    lines = [line(span("    " + cut(told, width - 4), DIM))] if told else []
    if agent["health"] in TROUBLED:
        text = f"{agent['health'].replace('_', ' ')}: {agent['health_reason']}"
        lines += wrap(cut(text, 3 * width), width, indent=4, first="    ", style=WARN)
    return lines


# -- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EventArguments:
    follow: bool = option("go on with what happens from now on", default=False, short="-f")
    limit: int = option("how many past events first", default=20, short="-n", metavar="N")
    task: str = option("only events of this task", default="", metavar="ID")


async def events(desk: Desk, arguments: EventArguments) -> AsyncIterator[Mapping[str, Any]]:
    """From the journal, then from the bus of the running daemon."""
    if arguments.follow and desk.live is None:
        raise DaemonUnreachable("no daemon is running here, so nothing can happen: `coordinator run` starts one")
    subscription = desk.live.bus.subscribe() if arguments.follow and desk.live is not None else None
    try:
        for item in _past(desk, arguments):
            yield item
        if subscription is None:
            return
        async for published in subscription:
            item = {"kind": published.event.kind, "at": published.at.isoformat(), **published.event.to_json()}
            if not arguments.task or item.get("task") == arguments.task:
                yield item
            if isinstance(published.event, happened.DaemonStopped):
                return
    finally:
        if subscription is not None:
            subscription.close()


def _past(desk: Desk, arguments: EventArguments) -> Iterator[Mapping[str, Any]]:
    if arguments.limit <= 0:
        return
    if arguments.task:
        rows = desk.rows("journal_of", task=arguments.task)[-arguments.limit :]
    else:
        rows = desk.rows("journal_last", limit=arguments.limit)
    for row in rows:
        yield {"kind": row["kind"], "at": row["at"], **json.loads(row["data"])}


def show_event(data: Mapping[str, Any], width: int) -> list[Line]:
    moment = local_time(data["at"], date=False) + " "
    event = event_from(data)
    if event is None:  # a newer version wrote it
        rest = ", ".join(f"{key}={value}" for key, value in data.items() if key not in ("kind", "at") and value)
        return [line(span(moment, DIM), span(cut(f"{data['kind']} {rest}", width - len(moment)), DIM))]
    news = phrase(event)
    first = f"{moment}{pad(news.word, 11)} "
    head, *rest_lines = wrap(cut(news.text, 4 * width), width, indent=len(first), first=first)
    return [(span(moment, DIM), span(f"{pad(news.word, 11)} ", news.style), *head[1:]), *rest_lines]


def event_from(data: Mapping[str, Any]) -> happened.Event | None:
    """The event that ``data`` describes, None when this version does not know it."""
    kind = "".join(part.title() for part in str(data.get("kind", "")).split("_"))
    made = getattr(happened, kind, None)
    if not isinstance(made, type) or not issubclass(made, happened.Event):
        return None
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in data.items()
        if key not in ("kind", "at", "seq")
    }
    try:
        return made(**values)
    except TypeError:
        return None


# -- race ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceArguments:
    processes: int = option("how many processes claim against each other", default=24, metavar="N")
    tasks: int = option("how many tasks they claim", default=200, metavar="N")


async def race(_: Desk, arguments: RaceArguments) -> Reply:
    from coordinator.fleet.race import race as run_race  # starts interpreters; only the self-test needs it

    for name, value, most in (("processes", arguments.processes, 1000), ("tasks", arguments.tasks, 100_000)):
        if not 1 <= value <= most:
            raise BadInput([Problem(file=f"--{name}", message=f"is {value}", expected=f"a number from 1 to {most}")])
    with tempfile.TemporaryDirectory(prefix="coordinator-race-") as folder:
        report = await asyncio.to_thread(run_race, arguments.processes, arguments.tasks, Path(folder))
    data = {**asdict(report), "claims_per_s": round(report.claims_per_s, 1), "passed": report.passed}
    return Reply(data=data, exit_code=0 if report.passed else 1)


def show_race(data: Mapping[str, Any], width: int) -> list[Line]:
    doubles = span(f"{data['doubles']} doubles", GOOD if not data["doubles"] else BAD)
    told = f"{plural(data['processes'], 'process', 'processes')}, {plural(data['tasks'], 'task')}: "
    lines = [line(told, f"{data['claimed']} claimed, ", doubles, f", {data['claims_per_s']:.0f} claims/s")]
    shares = f"{data['winners']} won at least one; {data['fewest']} to {data['most']} each; {duration(data['took_s'])}"
    lines += wrap(shares, width)
    verdict = span("passed", GOOD) if data["passed"] else span("FAILED: a task was lost or won twice", BAD)
    return [*lines, line(verdict)]


VERBS = (
    Verb(
        name="agents list",
        arguments=NoArguments,
        call=list_agents,
        doc="List agent processes and what each is doing.",
        show=show_agents,
    ),
    Verb(
        name="events",
        arguments=EventArguments,
        doc="Print what happened, and with -f what happens.",
        show=show_event,
        stream=events,
    ),
    Verb(
        name="race",
        arguments=RaceArguments,
        call=race,
        doc="Self-test: many processes claim the same tasks; no task may be won twice.",
        example="coordinator race --processes 200 --tasks 500",
        reach=Reach.HERE,
        show=show_race,
    ),
)

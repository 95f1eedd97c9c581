"""The verb ``status``: where everything stands, on one screen, and what to do next.

Owns one invariant: it says what is known and names what is not: a tool that did not scan is "not scanned", a check that
cannot run is named with its remedy, a daemon that does not answer is not called absent.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from coordinator.api.activity import shown_of, usage
from coordinator.api.discovered import tool_rows, tool_sentence
from coordinator.api.untested import consequence, untested
from coordinator.api.verb import NoArguments, Reply, Verb
from coordinator.api.verbs_tasks import STATE_STYLES, read_spool, show_problems, unread
from coordinator.api.view import (
    BAD,
    DIM,
    GOOD,
    STRONG,
    WARN,
    Line,
    cut,
    duration,
    facts,
    line,
    local_time,
    plural,
    span,
    wrap,
)
from coordinator.api.wire import problem_to_json
from coordinator.checks.detect import detect
from coordinator.domain.task import TaskState
from coordinator.fleet import sighting
from coordinator.gateway.gateway import listening_at
from coordinator.gateway.upstream import upstreams_of
from coordinator.kit import lock

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from coordinator.api.desk import Desk

_AT_WORK = (TaskState.CLAIMED, TaskState.RUNNING, TaskState.VALIDATING, TaskState.LANDING)
_STUCK = (TaskState.FAILED, TaskState.REJECTED, TaskState.HELD, TaskState.BLOCKED)
_SHOWN = 8


async def status(desk: Desk, _: NoArguments) -> Reply:
    plan = await asyncio.to_thread(detect, desk.root, desk.root, desk.settings.gate)
    refusal = _fact(desk, "refusal") or ""
    broken = desk.live.snapshot().gate_broken if desk.live is not None else ""
    counts, problems = await _spool(desk)
    missing = untested(desk, plan)
    data: dict[str, Any] = {
        "version": desk.version,
        "repository": str(desk.root),
        "target": desk.settings.land.target,
        "daemon": _daemon(desk),
        "gateway": _gateway(desk),
        "gate": {
            "checking": _checking(desk),
            "checks": [check.name for check in plan.checks],
            "unavailable": [
                {"check": one.check, "reason": one.reason, "remedy": one.remedy} for one in plan.unavailable
            ],
            "broken": broken,
            "has_tests": plan.has_tests,
            "untested": missing,
            "untested_means": consequence(desk) if missing else "",
        },
        "refusal": refusal,
        "tasks": counts,
        "at_work": [_work(desk, row) for state in _AT_WORK for row in desk.rows("tasks_by_state", state=state)],
        "stuck": [
            {"task": row["id"], "state": row["state"], "reason": row["reason"]}
            for state in _STUCK
            for row in desk.rows("tasks_by_state", state=state)
        ],
        "problems": problems,
        "findings": await asyncio.to_thread(tool_rows, desk),
        "incidents": [
            {key: row[key] for key in ("number", "began", "level", "cause")} for row in desk.rows("incidents_open")
        ],
    }
    data["next"] = next_steps(data)
    return Reply(data=data)


async def _spool(desk: Desk) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Tasks by state, and problems; without a daemon, of the files as they are now."""
    counts = {row["state"]: row["n"] for row in desk.rows("tasks_count")}
    if desk.live is not None:
        keys = ("file", "line", "key", "message", "expected")
        return counts, [{key: row[key] for key in keys} for row in desk.rows("problems")]
    spool = await read_spool(desk)
    new = len(unread(desk, spool))
    if new:
        counts[TaskState.PENDING.value] = counts.get(TaskState.PENDING.value, 0) + new
    return counts, [problem_to_json(problem) for problem in spool.problems]


def _fact(desk: Desk, key: str) -> Any:
    rows = desk.rows("fact_get", key=key)
    try:
        return json.loads(rows[0]["value"]) if rows else None
    except ValueError:
        return None


def _daemon(desk: Desk) -> dict[str, Any]:
    holder = lock.read_object(desk.layout.daemon_lock) or {}
    pid = holder.get("pid")
    if desk.live is not None:
        seen = desk.live.snapshot()
        return {
            "state": "draining" if seen.draining else "running",
            "pid": pid,
            "elapsed_s": round(seen.elapsed_s, 1),
            "agents": len(seen.agents),
        }
    held = lock.is_held(desk.layout.daemon_lock)
    return {"state": "silent" if held else "stopped", "pid": pid if held else None, "elapsed_s": None, "agents": None}


def _gateway(desk: Desk) -> dict[str, Any]:
    """Where model calls pass through and where they go to; nothing while none is taken."""
    url = listening_at(desk.layout.state) if desk.live is not None else ""
    used = upstreams_of(desk.settings.gateway, os.environ).in_use() if url else ()
    return {"url": url, "upstreams": [one.url for one in used]}


def _checking(desk: Desk) -> dict[str, Any] | None:
    seen = desk.live.snapshot() if desk.live is not None else None
    return {"check": seen.checking, "since_s": seen.checking_s} if seen is not None and seen.checking else None


def _work(desk: Desk, row: sqlite3.Row) -> dict[str, Any]:
    seen = sighting.look(desk.layout, row["id"], row["generation"])
    attempts = [one for one in desk.rows("attempts_of", task=row["id"]) if one["generation"] == row["generation"]]
    claimed_at = attempts[0]["claimed_at"] if attempts else None
    since_s = None
    if claimed_at:
        since_s = max(0.0, round((desk.clock.now() - datetime.fromisoformat(claimed_at)).total_seconds(), 1))
    return {
        "task": row["id"],
        "title": row["title"],
        "state": row["state"],
        "generation": row["generation"],
        "agent": seen.record.agent if seen.record is not None else "",
        "pid": seen.record.pid if seen.record is not None else None,
        "held": seen.held,
        "doing": seen.doing,
        "note": seen.note,
        "since_s": since_s,
        **shown_of(seen.vitals),
    }


def next_steps(data: Mapping[str, Any]) -> list[str]:
    """What a person may want to do now, the most pressing first; each names its command."""
    steps = []
    tasks, stuck = data["tasks"], data["stuck"]
    if data["problems"]:
        steps.append("mend the task files: coordinator tasks check")
    failed = [one["task"] for one in stuck if one["state"] == TaskState.FAILED]
    blocked = [one["task"] for one in stuck if one["state"] == TaskState.BLOCKED]
    if failed:
        steps.append(f"see why a task failed: coordinator explain {failed[0]}")
    elif blocked:
        steps.append(f"see what a task waits for: coordinator explain {blocked[0]}")
    waiting = sum(tasks.get(state, 0) for state in ("pending", "ready", *_AT_WORK))
    if data["daemon"]["state"] == "stopped":
        if waiting:
            steps.append(f"work on the {plural(waiting, 'waiting task')}: coordinator run")
        elif not tasks:
            steps.append("let linters find work: coordinator run --self-improve")
            steps.append("write a task: coordinator tasks add 'what to do'")
    if data["incidents"]:
        steps.append(f"see what is not as usual: coordinator incidents show {data['incidents'][-1]['number']}")
    unowned = sum(found["needs_model"] for found in data["findings"])
    if unowned:
        what = plural(unowned, "finding") + " that no tool mends"
        steps.append(f"see {what} ([discovery] role gives them to a model): coordinator findings list")
    if tasks.get("completed"):
        steps.append(f"see what landed: git log -p HEAD..{data['target']}")
    return steps


# -- for a person --------------------------------------------------------------------------------------------------


def show_status(data: Mapping[str, Any], width: int) -> list[Line]:
    lines = facts([("repository", data["repository"]), ("lands on", data["target"])], width)
    lines += _daemon_lines(data["daemon"], width)
    if data["gateway"]["url"]:
        to = " and ".join(data["gateway"]["upstreams"]) or "nowhere: no upstream is configured"
        lines += facts([("gateway", f"model calls pass through {data['gateway']['url']} to {to}")], width)
    lines += _gate_lines(data["gate"], width)
    lines += facts([("tasks", _counted(data["tasks"]))], width)
    for one in data["incidents"][:_SHOWN]:
        style = BAD if one["level"] == "critical" else WARN
        text = f"{one['number']}: {one['cause']}, since {local_time(one['began'])}"
        lines += wrap(text, width, indent=12, first="incident    ", style=style)
    if data["refusal"]:
        lines += facts([("held up", data["refusal"])], width)
    for found in data["findings"]:
        lines += facts([("findings", tool_sentence(found))], width)
    heading = "At work:" if data["daemon"]["state"] != "stopped" else "Left, for the next start:"
    lines += _work_lines(data["at_work"], heading, width)
    if data["problems"]:
        lines += [line(), line(span(f"{plural(len(data['problems']), 'problem')} in task files:", BAD))]
        lines += show_problems(data["problems"][:_SHOWN], width)
        lines += _more(len(data["problems"]), "coordinator tasks check")
    if data["stuck"]:
        lines += [line(), line(span("Waits for you:", STRONG))]
        for one in data["stuck"][:_SHOWN]:
            text = cut(f"{one['task']} is {one['state']}: {one['reason']}", 3 * width)
            lines += wrap(text, width, indent=4, first="  ", style=STATE_STYLES.get(one["state"], ""))
        lines += _more(len(data["stuck"]), "coordinator tasks list")
    if data["next"]:
        lines += [line(), line(span("Next:", STRONG))]
        for step in data["next"]:
            lines += wrap(step, width, indent=4, first="  ")
    return lines


def _daemon_lines(daemon: Mapping[str, Any], width: int) -> list[Line]:
    match daemon["state"]:
        case "stopped":
            text, style = "not running", WARN
        case "silent":
            text, style = f"pid {daemon['pid'] or '?'} holds this directory but does not answer", WARN
        case state:
            agents = plural(daemon["agents"], "agent")
            text, style = f"{state} (pid {daemon['pid']}) for {duration(daemon['elapsed_s'])}, {agents}", GOOD
    (head, *rest), *more = wrap(text, width, indent=12, first="daemon      ", style=style)
    return [(span(head.text, DIM), *rest), *more]


def _gate_lines(gate: Mapping[str, Any], width: int) -> list[Line]:
    checks = ", ".join(gate["checks"]) or "nothing to check with: set [gate] commands in coordinator.toml"
    lines = facts([("gate", checks)], width)
    if gate["checking"]:
        at = f"at work: {gate['checking']['check']} for {duration(gate['checking']['since_s'])}"
        lines += wrap(cut(at, 2 * width), width, indent=12, first=" " * 12, style=DIM)
    if gate["broken"]:
        lines += wrap(f"BROKEN, nothing lands: {gate['broken']}", width, indent=12, first=" " * 12, style=BAD)
    if gate["untested"]:
        why = "; ".join(f"{one['check']}: {one['reason']}" for one in gate["untested"])
        text = f"the project's tests cannot be run ({why}): {gate['untested_means']}"
        lines += wrap(text, width, indent=12, first=" " * 12, style=WARN)
    elif not gate["has_tests"]:
        lines += wrap("the project has no tests", width, indent=12, first=" " * 12, style=DIM)
    for one in gate["unavailable"]:
        text = f"cannot run {one['check']}: {one['reason']}; {one['remedy']}"
        lines += wrap(text, width, indent=12, first=" " * 12, style=WARN)
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in TaskState if counts.get(state)) or "none"


def _work_lines(rows: list[Mapping[str, Any]], heading: str, width: int) -> list[Line]:
    if not rows:
        return []
    lines: list[Line] = [line(), line(span(heading, STRONG))]
    for row in rows[:_SHOWN]:
        who = f"{row['agent'] or 'an agent'}, " if row["state"] in ("claimed", "running") else ""
        since = f" for {duration(row['since_s'])}" if row["since_s"] is not None else ""
        lines += wrap(f"{row['task']}: {who}{row['state']}{since}", width, indent=4, first="  ")
        told = ", ".join(filter(None, (row["activity"], usage(row)))) if who else ""
        if told:
            lines.append(line(span("    " + cut(told, width - 4), DIM)))
        detail = row["note"] or (row["title"] if row["title"] != row["task"] else "")
        if detail:
            lines.append(line(span("    " + cut(detail, width - 4), DIM)))
    return lines + _more(len(rows), "coordinator agents list")


def _more(count: int, command: str) -> list[Line]:
    return [line(span(f"  … and {count - _SHOWN} more: {command}", DIM))] if count > _SHOWN else []


VERBS = (
    Verb(
        name="status",
        arguments=NoArguments,
        call=status,
        doc="Where everything stands, and what to do next.",
        show=show_status,
    ),
)

"""The verbs about what the discovery tools found: findings list, show, dismiss, reopen, stats.

Owns one invariant: a person's word is about findings that the person named, one by one or by what they have in common; a name
that fits none or several is told and nothing is done.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.discovered import finding_to_json, tool_rows, tool_sentence
from coordinator.api.verb import Reply, Verb, operand, option
from coordinator.api.view import (
    BAD,
    DIM,
    GOOD,
    WARN,
    Line,
    cut,
    duration,
    facts,
    line,
    local_time,
    plural,
    span,
    table,
    wrap,
)
from coordinator.domain.errors import BadInput
from coordinator.domain.finding import SEEN, FindingState, Severity
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.api.desk import Desk

_DAY_KEYS: Final = ("day", "found", "fixed", "reopened", "dismissed", "tool")
_STATES: Final = tuple(FindingState)
_STATE_STYLES: Final[Mapping[str, str]] = {
    FindingState.DISMISSED: DIM,
    FindingState.FIXED: GOOD,
    FindingState.REOPENED: WARN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingFilter:
    state: tuple[str, ...] = option("only this state (may be repeated); without one: what is open", default=())
    tool: tuple[str, ...] = option("only of this tool (may be repeated)", default=(), metavar="TOOL")
    rule: tuple[str, ...] = option("only of this rule (may be repeated)", default=(), metavar="RULE")
    path: tuple[str, ...] = option("only in files that this glob fits (may be repeated)", default=(), metavar="GLOB")
    limit: int = option("at most so many, 0 for all", default=50, short="-n", metavar="N")


async def list_findings(desk: Desk, arguments: FindingFilter) -> Reply:
    wrong = [state for state in arguments.state if state not in _STATES]
    if wrong:
        expected = ", ".join(_STATES)
        raise BadInput([Problem(file="--state", message=f"no state {state!r}", expected=expected) for state in wrong])
    states = arguments.state or tuple(SEEN)
    rows = [row for row in _all(desk) if row["state"] in states and _fits(row, arguments)]
    rows.sort(key=lambda row: (Severity[row["severity"].upper()], row["tool"], row["path"], row["line"], row["rule"]))
    shown = rows[: arguments.limit] if arguments.limit > 0 else rows
    return Reply(data={"findings": shown, "total": len(rows)})


def _all(desk: Desk) -> list[dict[str, Any]]:
    return [finding_to_json(row) for row in desk.rows("findings")]


def _fits(row: Mapping[str, Any], wanted: FindingFilter | JudgeArguments) -> bool:
    return (
        (not wanted.tool or row["tool"] in wanted.tool)
        and (not wanted.rule or row["rule"] in wanted.rule)
        and (not wanted.path or any(fnmatchcase(row["path"], glob) for glob in wanted.path))
    )


def show_list(data: Mapping[str, Any], width: int) -> list[Line]:
    found = data["findings"]
    if not found:
        return [line("no such findings; `coordinator scan` looks")]
    rows = [(one["id"], one["severity"], one["state"], f"{one['tool']} {one['rule']}", _placed(one)) for one in found]
    styles = [_STATE_STYLES.get(one["state"], "") for one in found]
    lines = table(("ID", "SEVERITY", "STATE", "RULE", "WHERE AND WHAT"), rows, width, styles)
    if len(found) < data["total"]:
        lines.append(line(span(f"… and {data['total'] - len(found)} more", DIM)))
    return lines


def _placed(one: Mapping[str, Any]) -> str:
    place = f"{one['path']}:{one['line']}" if one["line"] else one["path"]
    return f"{place}: {one['message']}"


# -- show ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingArguments:
    finding: tuple[str, ...] = operand("ids of findings, or how they begin", metavar="ID")


async def show_finding(desk: Desk, arguments: FindingArguments) -> Reply:
    return Reply(data={"findings": _named(_all(desk), arguments.finding)})


def _named(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The findings that begin with ``names``, each of which must fit exactly one."""
    found, problems = [], []
    for name in dict.fromkeys(names):
        fitting = [row for row in rows if name and row["fingerprint"].startswith(name.lower())]
        if len(fitting) == 1:
            found += fitting
        else:
            what = f"{len(fitting)} findings begin with {name!r}" if fitting else f"there is no finding {name!r}"
            problems.append(Problem(file="ID", message=what, expected="an id as `coordinator findings list` shows it"))
    if problems:
        raise BadInput(problems)
    return found


def show_findings(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = []
    for one in data["findings"]:
        lines += [line()] if lines else []
        lines += _finding_lines(one, width)
    return lines


def _finding_lines(one: Mapping[str, Any], width: int) -> list[Line]:
    state = one["state"] + (f", came back {one['returns']}×" if one["returns"] else "")
    state += f" (fixed before by {one['fixed_by']})" if one["fixed_by"] else ""
    severity = one["severity"] + (f", CVSS {one['cvss']:g}" if one["cvss"] is not None else "")
    package = " ".join(part for part in (one["package"], one["installed"]) if part)
    fix = one["fix"] + (f" {one['fix_version']}" if one["fix_version"] else "")
    pairs = [
        ("finding", f"{one['tool']} {one['rule']}: {one['message']}"),
        ("id", one["fingerprint"]),
        ("state", state),
        ("severity", f"{severity} ({one['category']})"),
        *(("where", _place_text(place)) for place in one["places"]),
        ("source", one["evidence"]),
        ("package", package),
        ("advisories", ", ".join(one["advisories"])),
        ("fix", fix),
        ("suggestion", one["suggestion"]),
        ("task", one["task"]),
        ("reason", one["reason"]),
        ("first seen", local_time(one["first_seen"])),
        ("last seen", local_time(one["last_seen"])),
        ("fixed", local_time(one["closed_at"])),
        *(("to read", link) for link in one["links"]),
    ]
    return facts([(name, value) for name, value in pairs if value], width)


def _place_text(place: Mapping[str, Any]) -> str:
    return f"{place['path']}:{place['line']}" if place["line"] else str(place["path"])


# -- dismiss and reopen --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeArguments:
    finding: tuple[str, ...] = operand("ids of findings, or how they begin", default=(), metavar="ID")
    tool: tuple[str, ...] = option("all open ones of this tool (may be repeated)", default=(), metavar="TOOL")
    rule: tuple[str, ...] = option("all open ones of this rule (may be repeated)", default=(), metavar="RULE")
    path: tuple[str, ...] = option("all open ones in files that this glob fits", default=(), metavar="GLOB")


@dataclass(frozen=True, slots=True, kw_only=True)
class DismissArguments(JudgeArguments):
    reason: str = option("why they are none, for whoever asks later", default="", short="-m", metavar="TEXT")


async def dismiss_findings(desk: Desk, arguments: DismissArguments) -> Reply:
    if not arguments.reason.strip():
        raise BadInput([Problem(file="--reason", message="is missing", expected="why, in a few words: -m TEXT")])
    chosen = _chosen(_all(desk), arguments, tuple(SEEN))
    async with desk.operate() as operations:
        count = await operations.dismiss([one["fingerprint"] for one in chosen], arguments.reason.strip())
    return Reply(data={"action": "dismissed", "findings": chosen, "changed": count}, exit_code=0 if count else 1)


async def reopen_findings(desk: Desk, arguments: JudgeArguments) -> Reply:
    chosen = [one for one in _chosen(_all(desk), arguments, (FindingState.DISMISSED, *SEEN)) if one["reason"]]
    async with desk.operate() as operations:
        count = await operations.reopen([one["fingerprint"] for one in chosen])
    return Reply(data={"action": "reopened", "findings": chosen, "changed": count}, exit_code=0 if count else 1)


def _chosen(rows: Sequence[dict[str, Any]], arguments: JudgeArguments, states: Sequence[str]) -> list[dict[str, Any]]:
    """By id, or all in one of ``states`` that fit every one of the other marks."""
    by_mark = bool(arguments.tool or arguments.rule or arguments.path)
    if bool(arguments.finding) is by_mark:
        expected = "either ids, or --tool, --rule and --path"
        raise BadInput([Problem(file="findings", message="are not named in one way", expected=expected)])
    if arguments.finding:
        return _named(rows, arguments.finding)
    return [row for row in rows if row["state"] in states and _fits(row, arguments)]


def show_judged(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["changed"]:
        return wrap(f"none was {data['action']}: those that fit are in no state for it", width, style=BAD)
    lines = wrap(f"{plural(data['changed'], 'finding')} {data['action']}", width, style=GOOD)
    return lines + [line(f"  {cut(_placed(one), width - 2)}") for one in data["findings"][:10]]


# -- stats ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsArguments:
    days: int = option("how many days of history", default=14, short="-d", metavar="N")


async def finding_stats(desk: Desk, arguments: StatsArguments) -> Reply:
    now, rows = desk.clock.now(), _all(desk)
    since = (now - timedelta(days=max(arguments.days, 1) - 1)).date().isoformat()
    days = [dict(row) for row in desk.rows("finding_days", since=since)]
    open_ = [row for row in rows if row["state"] in SEEN]
    ages = sorted((now - datetime.fromisoformat(row["first_seen"])).total_seconds() for row in open_)
    fixed = [_lived_s(row) for row in rows if row["state"] == FindingState.FIXED and row["closed_at"]]
    data = {
        "tools": await asyncio.to_thread(tool_rows, desk),
        "days": days,
        "by_severity": dict(Counter(row["severity"] for row in open_)),
        "rules": Counter(f"{row['tool']} {row['rule']}" for row in open_).most_common(10),
        "open": len(open_),
        "regressions": sum(row["returns"] > 0 for row in open_),
        "oldest_s": ages[-1] if ages else None,
        "median_age_s": statistics.median(ages) if ages else None,
        "median_fixed_after_s": statistics.median(fixed) if fixed else None,
    }
    return Reply(data=data)


def _lived_s(row: Mapping[str, Any]) -> float:
    return (datetime.fromisoformat(row["closed_at"]) - datetime.fromisoformat(row["first_seen"])).total_seconds()


def show_stats(data: Mapping[str, Any], width: int) -> list[Line]:
    pairs = [("findings", tool_sentence(found)) for found in data["tools"]]
    severities = [f"{data['by_severity'][one]} {one}" for one in _severities() if data["by_severity"].get(one)]
    pairs += [("open", f"{data['open']}" + (f" ({', '.join(severities)})" if severities else ""))]
    pairs += (
        [("regressions", plural(data["regressions"], "open finding") + " was fixed before")]
        if data["regressions"]
        else []
    )
    if data["oldest_s"] is not None:
        pairs.append(
            ("age", f"half are older than {duration(data['median_age_s'])}, the oldest {duration(data['oldest_s'])}")
        )
    if data["median_fixed_after_s"] is not None:
        pairs.append(("fixed after", f"{duration(data['median_fixed_after_s'])} (half of them)"))
    lines = facts(pairs, width)
    if data["rules"]:
        rows = [(str(count), rule) for rule, count in data["rules"]]
        lines += [line(), *table(("OPEN", "RULE"), rows, width)]
    if data["days"]:
        days = [tuple(str(one[key]) for key in _DAY_KEYS) for one in data["days"]]
        lines += [line(), *table(tuple(key.upper() for key in _DAY_KEYS), days, width)]
    return lines


def _severities() -> list[str]:
    return [severity.name.lower() for severity in Severity]


VERBS = (
    Verb(
        name="findings dismiss",
        arguments=DismissArguments,
        call=dismiss_findings,
        doc="Say that findings are none; no task is made of them, whatever later scans see.",
        example='coordinator findings dismiss 3f9a12c0de -m "the file is a fixture"',
        show=show_judged,
    ),
    Verb(
        name="findings list",
        arguments=FindingFilter,
        call=list_findings,
        doc="What is open, the worst first.",
        show=show_list,
    ),
    Verb(
        name="findings reopen",
        arguments=JudgeArguments,
        call=reopen_findings,
        doc="Undo a dismissal, or whatever else keeps findings from being worked on.",
        show=show_judged,
    ),
    Verb(
        name="findings show",
        arguments=FindingArguments,
        call=show_finding,
        doc="Everything that is known of findings.",
        show=show_findings,
    ),
    Verb(
        name="findings stats",
        arguments=StatsArguments,
        call=finding_stats,
        doc="How many there are, how old they are, and what became of them day by day.",
        show=show_stats,
    ),
)

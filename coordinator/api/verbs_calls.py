"""The verbs about model calls: the calls themselves, and what they cost.

Owns one invariant: every figure is read from the book that the gateway writes; a cost that is not known is not zero, it is
called unknown. Prompts are nowhere in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import NoArguments, Reply, Verb, option
from coordinator.api.view import BAD, DIM, GOOD, STRONG, WARN, Line, cut, line, local_time, plural, span, table, wrap

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Mapping

    from coordinator.api.desk import Desk

_LOOK_S: Final = 0.5
_PAGE: Final = 500
_MOST: Final = 10_000
_STYLES: Final = (("served", GOOD), ("left", DIM), ("revoked", DIM), ("stopped", DIM))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArguments:
    """``coordinator calls``."""

    follow: bool = option("go on with calls that end from now on", default=False, short="-f")
    limit: int = option("how many past calls first", default=20, short="-n", metavar="N")
    task: str = option("only calls of this task", default="", metavar="ID")


async def calls(desk: Desk, arguments: CallArguments) -> AsyncIterator[Mapping[str, Any]]:
    """From the book; it is written within half a second."""
    limit, last = min(max(arguments.limit, 0), _MOST), 0
    newest = desk.rows("calls_last", limit=1)
    last = newest[0]["number"] if newest else 0
    if limit:
        rows = desk.rows("calls_of", task=arguments.task, limit=limit) if arguments.task else None
        for row in rows if rows is not None else desk.rows("calls_last", limit=limit):
            yield _call(row)
    while arguments.follow:
        for row in desk.rows("calls_after", number=last, limit=_PAGE):
            last = row["number"]
            if not arguments.task or row["task"] == arguments.task:
                yield _call(row)
        await desk.clock.sleep(_LOOK_S)


def _call(row: sqlite3.Row) -> dict[str, Any]:
    return {"at": row["at"], **json.loads(row["data"])}


def show_call(data: Mapping[str, Any], width: int) -> list[Line]:
    """One line where it fits: when, who, what, how long, how much."""
    moment = local_time(data["at"], date=False)
    ended = data["ending"] if not data["status"] else f"{data['ending']} {data['status']}"
    style = next((style for name, style in _STYLES if data["ending"] == name and data["status"] < 400), WARN)
    if data["ending"] in ("broken", "failed", "unreached", "late"):
        style = BAD
    who = f"{data['task']}.{data['generation']}"
    parts = [f"{data['model'] or data['path']} at {data['upstream'] or 'no upstream'}"]
    parts.append(
        f"{data['took_s']:.1f} s" + (f", first byte {data['first_byte_s']:.1f}" if data["first_byte_s"] else "")
    )
    if data["wait_s"] >= 0.05:
        parts.append(f"held {data['wait_s']:.1f} s")
    if data["tries"] > 1:
        parts.append(plural(data["tries"], "try", "tries"))
    parts += _tokens(data)
    if data["collapsed"]:
        parts.append(f"shared ({data['collapsed']}), saved {_usd(data['saved_usd'])}")
    first = f"{moment} "
    head, *rest = wrap(f"{who}  {ended}  " + "  ".join(parts), width, indent=len(first) + 2, first=first)
    text = head[1].text
    return [(span(moment, DIM), span(" "), span(text, style)), *rest]


def _tokens(data: Mapping[str, Any]) -> list[str]:
    seen = data["input_tokens"] + data["cache_read_tokens"] + data["cache_write_tokens"]
    if not seen and not data["output_tokens"]:
        return []
    cached = f" ({_count(data['cache_read_tokens'])} cached)" if data["cache_read_tokens"] else ""
    cost = _usd(data["cost_usd"]) if data["priced"] else "cost unknown"
    return [f"{_count(seen)} in{cached}, {_count(data['output_tokens'])} out", cost]


def _count(number: int) -> str:
    return str(number) if number < 1000 else f"{number / 1000:.1f}k" if number < 100_000 else f"{number / 1000:.0f}k"


def _usd(amount: float) -> str:
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}"


# -- spend ---------------------------------------------------------------------------------------------------------


async def spend(desk: Desk, _: NoArguments) -> Reply:
    """By day and by task, the dearest first."""
    days = [dict(row) for row in desk.rows("spend_by_day")]
    tasks = [dict(row) for row in desk.rows("spend_by_task")]
    tasks.sort(key=lambda row: (-row["cost_usd"], row["task"]))
    return Reply(data={"days": days, "tasks": tasks})


def show_spend(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["days"]:
        return [line(span("No model call has passed through the gateway yet.", DIM))]
    header = ("day", "calls", "unpriced", "saved", "cost")
    rows = [
        (day["day"], str(day["calls"]), str(day["unpriced"] or ""), _usd(day["saved_usd"]), _usd(day["cost_usd"]))
        for day in data["days"][-31:]
    ]
    lines = table(header, rows, width)
    lines += [line(), line(span("By task:", STRONG))]
    most = 20
    for row in data["tasks"][:most]:
        lines.append(line(f"  {_usd(row['cost_usd']):>10}  ", cut(row["task"], max(10, width - 14))))
    if len(data["tasks"]) > most:
        lines.append(line(span(f"  … and {len(data['tasks']) - most} more: coordinator spend --json", DIM)))
    return lines


# -- the gateway's door --------------------------------------------------------------------------------------------


def show_door(data: Mapping[str, Any], width: int) -> list[Line]:
    """What a client of a gateway needs, ready to be pasted into a shell."""
    url = data["url"]
    lines = wrap(f"model calls are taken at {url}", width, style=GOOD)
    for name, where in data["upstreams"].items():
        lines += wrap(f"they go to {name} ({where})" if where != name else f"they go to {name}", width, indent=2)
    for name, key in data["keys"].items():
        lines += [line(), line(span(f"# {name}", DIM))]
        lines += [line(f"export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={key}")]
        lines += [line(f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}")]
        lines += [line(f"export GOOGLE_GEMINI_BASE_URL={url} GEMINI_API_KEY={key}")]
    return [*lines, line(), line(span("`coordinator calls -f` shows each call. Ctrl-C ends it.", DIM))]


VERBS = (
    Verb(
        name="calls",
        anywhere=True,
        arguments=CallArguments,
        doc="Print model calls that passed through the gateway, and with -f those to come.",
        example="coordinator calls -f --task fix-login",
        show=show_call,
        stream=calls,
    ),
    Verb(
        name="spend",
        anywhere=True,
        arguments=NoArguments,
        call=spend,
        doc="What model calls have cost, by day and by task.",
        show=show_spend,
    ),
)

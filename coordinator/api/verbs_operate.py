"""The verbs that change what happens to tasks: cancel, hold, release, retry, scan.

Owns one invariant: several ids are several answers; one that cannot be done does not stop the others, and all are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import Reply, Verb, operand, option
from coordinator.api.view import BAD, GOOD, WARN, Line, duration, line, plural, wrap
from coordinator.api.wire import error_to_json
from coordinator.domain.errors import CoordinatorError, DaemonBusy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from coordinator.api.desk import Desk, Operations


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyArguments:
    tasks: tuple[str, ...] = operand("ids of tasks", metavar="ID")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonedArguments:
    tasks: tuple[str, ...] = operand("ids of tasks", metavar="ID")
    reason: str = option("why, for whoever asks later", default="", short="-m", metavar="TEXT")


_DONE: Final = MappingProxyType({"held": "held; an attempt that is at work goes on and may land"})


async def _each(
    desk: Desk, tasks: tuple[str, ...], done: str, act: Callable[[Operations, str], Awaitable[None]]
) -> Reply:
    results: list[dict[str, Any]] = []
    worst = 0
    async with desk.operate() as operations:
        for task in dict.fromkeys(tasks):
            try:
                await act(operations, task)
                results.append({"task": task, "done": True, "error": None})
            except DaemonBusy:
                raise
            except CoordinatorError as error:
                worst = max(worst, error.exit_code)
                results.append({"task": task, "done": False, "error": error_to_json(error)})
    return Reply(data={"action": done, "results": results, "daemon": desk.live is not None}, exit_code=worst)


async def cancel(desk: Desk, arguments: ReasonedArguments) -> Reply:
    reason = arguments.reason or "cancelled by the operator"
    return await _each(desk, arguments.tasks, "cancelled", lambda operations, task: operations.cancel(task, reason))


async def hold(desk: Desk, arguments: ReasonedArguments) -> Reply:
    reason = arguments.reason or "held by the operator"
    return await _each(desk, arguments.tasks, "held", lambda operations, task: operations.hold(task, reason))


async def release(desk: Desk, arguments: ManyArguments) -> Reply:
    return await _each(desk, arguments.tasks, "released", lambda operations, task: operations.release(task))


async def retry(desk: Desk, arguments: ManyArguments) -> Reply:
    return await _each(desk, arguments.tasks, "to be retried", lambda operations, task: operations.retry(task))


def show_results(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = []
    for result in data["results"]:
        if result["done"]:
            done = _DONE.get(data["action"], data["action"])
            lines += wrap(f"ok   {result['task']}: {done}", width, indent=5, style=GOOD)
        else:
            lines += wrap(f"no   {result['error']['message']}", width, indent=5, style=BAD)
    return lines


# -- scan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanArguments:
    tools: tuple[str, ...] = operand("tools to scan with; none: the configured ones", default=(), metavar="TOOL")


async def scan(desk: Desk, arguments: ScanArguments) -> Reply:
    async with desk.operate() as operations:
        reports = await operations.scan(arguments.tools)
    rows = [
        {
            "tool": report.tool,
            "status": str(report.status),
            "reason": report.reason,
            "total": report.total,
            "opened": report.opened,
            "closed": report.closed,
            "queued": report.queued,
            "took_s": report.took_s,
        }
        for report in reports
    ]
    not_scanned = any(row["status"] != "scanned" for row in rows)
    return Reply(data={"scans": rows}, exit_code=1 if not_scanned else 0)


def show_scan(data: Mapping[str, Any], width: int) -> list[Line]:
    lines: list[Line] = []
    for scan in data["scans"]:
        if scan["status"] != "scanned":
            lines += wrap(f"{scan['tool']}: not scanned ({scan['status']}): {scan['reason']}", width, style=WARN)
            continue
        counted = f"{plural(scan['total'], 'finding')}, {scan['opened']} new, {scan['closed']} gone since the last scan"
        lines += wrap(f"{scan['tool']}: {counted}, in {duration(scan['took_s'])}", width)
        if scan["queued"]:
            lines += wrap(f"{plural(scan['queued'], 'task')} written into tasks/auto/", width)
    return lines or [line("no tools are configured: see [discovery] tools")]


VERBS = (
    Verb(
        name="scan",
        arguments=ScanArguments,
        call=scan,
        doc="Run the discovery tools now and fold what they find.",
        show=show_scan,
    ),
    Verb(
        name="tasks cancel",
        arguments=ReasonedArguments,
        call=cancel,
        doc="Stop tasks and never start them again unless retried.",
        show=show_results,
    ),
    Verb(
        name="tasks hold",
        arguments=ReasonedArguments,
        call=hold,
        doc="Start no further attempt; one at work goes on.",
        show=show_results,
    ),
    Verb(name="tasks release", arguments=ManyArguments, call=release, doc="Undo a hold.", show=show_results),
    Verb(
        name="tasks retry",
        arguments=ManyArguments,
        call=retry,
        doc="Run settled tasks again from the start, with all their attempts.",
        show=show_results,
    ),
)

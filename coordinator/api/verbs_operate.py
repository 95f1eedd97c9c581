"""The verbs that change what happens to tasks: cancel, hold, release, retry.

Owns one invariant: several ids are several answers; one that cannot be done does not stop the others, and all are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.verb import Reply, Verb, operand, option
from coordinator.api.view import BAD, GOOD, Line, wrap
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


VERBS = (
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

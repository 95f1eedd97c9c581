"""What an event is called when a person reads it: one word, one sentence, one level.

Owns one invariant: from INFO upwards everything that happened is told once: a landing is a landing, not also a change
of state. Logs, the live view and ``events`` all speak through it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.api.view import BAD, DIM, GOOD, STRONG, WARN, duration, plural, size
from coordinator.domain import event as happened
from coordinator.domain.finding import REPORTING, ScanStatus
from coordinator.domain.task import TaskState
from coordinator.policy.health import HealthState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from coordinator.domain.event import Event

_NPM_REMEDY = 'set [gate] commands to what tests a clean tree, e.g. ["npm ci && npm test"]'
_TEST_REMEDY = "make a .venv with the project's dependencies, or set [gate] python or commands"

_PID = re.compile(r" \(pid \d+\)$")

_WORKING = frozenset({TaskState.CLAIMED, TaskState.RUNNING, TaskState.VALIDATING, TaskState.LANDING})


@dataclass(frozen=True, slots=True)
class Phrase:
    """``word`` says what kind of news it is, ``text`` the rest; ``level`` is one of ``logging``. ``quiet`` news goes
    into logs, but not past somebody who sees it in the live picture anyway.
    """

    word: str
    text: str
    level: int = logging.INFO
    style: str = ""
    quiet: bool = False


def phrase(event: Event) -> Phrase:
    """Never empty; what was or will be told otherwise has level DEBUG."""
    teller = _TELLERS.get(type(event))
    if teller is None:
        return Phrase(event.kind, str(event.to_json()), logging.DEBUG, DIM)
    return teller(event)


def said(reason: str) -> str:
    """Why a run ends, as a person would say it."""
    return "nothing is left to do" if reason == "idle" else reason


def _titled(task: str, title: str) -> str:
    return f"{task}: {title}" if title and title != task else task


def _agent_exited(event: happened.AgentExited) -> Phrase:
    if event.exit_code in (0, None):
        return Phrase("agent", f"{event.agent} (pid {event.pid}) ended", logging.DEBUG, DIM)
    how = f"signal {-event.exit_code}" if event.exit_code and event.exit_code < 0 else f"exit code {event.exit_code}"
    return Phrase("agent", f"{event.agent} (pid {event.pid}) ended with {how}", logging.WARNING, WARN)


def _agent_health(event: happened.AgentHealthChanged) -> Phrase:
    """That somebody is being stopped is told by what becomes of the task."""
    who = f"{event.task}/{event.generation}" + (f" ({event.agent})" if event.agent else "")
    text = f"{who} is {event.new.replace('_', ' ')}: {event.reason}"
    if event.new == HealthState.QUIET:
        return Phrase("quiet", text, logging.INFO, WARN, quiet=True)
    return Phrase("health", text, logging.DEBUG, DIM)


def _clock_stepped(event: happened.ClockStepped) -> Phrase:
    gap = duration(event.gap_s)
    extended = "every deadline of agents at work is extended by that, once"
    match event.how:
        case "ran_ahead":
            text = f"wall time ran ahead by {gap} (the machine slept, or its clock was set): {extended}"
        case "late_turn":
            text = f"nothing could be looked at for {gap} (daemon or machine were frozen): {extended}"
        case _:
            text = f"wall time was set back by {gap}; nothing depends on it"
    return Phrase("clock", text, logging.WARNING, WARN)


def _agent_started(event: happened.AgentStarted) -> Phrase:
    what = "was found alive" if event.adopted else "started"
    return Phrase("agent", f"{event.agent} {what} (pid {event.pid})", logging.DEBUG, DIM)


def _attempt_ended(event: happened.AttemptEnded) -> Phrase:
    took = f" after {duration(event.duration_s)}" if event.duration_s else ""
    text = f"{event.task}/{event.generation} {event.ending.replace('_', ' ')}{took}: {event.reason}"
    return Phrase("attempt", text, logging.DEBUG, DIM)


def _calls_counted(event: happened.CallsCounted) -> Phrase:
    up, down = event.bytes_up / 1e6, event.bytes_down / 1e6
    limited = f", {event.limited} were told to slow down" if event.limited else ""
    text = f"{event.task}/{event.generation} made {plural(event.calls, 'call')} ({up:.1f} MB up, {down:.1f} MB down){limited}"
    return Phrase("model", text, logging.DEBUG, DIM)


def _draining(event: happened.DaemonDraining) -> Phrase:
    if not event.running:
        return Phrase("draining", f"{said(event.reason)}, nothing is at work", logging.DEBUG, DIM)
    text = f"{said(event.reason)}; finishing {plural(event.running, 'attempt')}, nothing new is started"
    return Phrase("draining", text, logging.INFO, STRONG)


def _ready(event: happened.DaemonReady) -> Phrase:
    adopted = f", {plural(event.adopted, 'agent')} found alive" if event.adopted else ""
    known = plural(event.tasks, "task")
    text = f"in {event.took_s:.1f} s: {known} known{adopted}, work lands on {event.target} (pid {event.pid})"
    return Phrase("ready", text, logging.INFO, STRONG)


def _reloading(event: happened.DaemonReloading) -> Phrase:
    return Phrase("reloading", f"{event.reason}: reading the configuration again; agents go on", logging.INFO, STRONG)


def test_remedy(untested: str) -> str:
    """What helps when the project's tests cannot be run; ``untested`` says which and why."""
    return _NPM_REMEDY if untested.startswith("npm test") else _TEST_REMEDY


def _reload_refused(event: happened.ReloadRefused) -> Phrase:
    more = f" (and {len(event.problems) - 1} more)" if len(event.problems) > 1 else ""
    text = f"the old configuration stays in force: {event.problems[0]}{more}"
    return Phrase("not reloaded", text, logging.ERROR, BAD)


def _stopped(event: happened.DaemonStopped) -> Phrase:
    return Phrase("stopped", said(event.reason), logging.INFO, STRONG)


def _idle(event: happened.FleetIdle) -> Phrase:
    counts = f"{event.completed} completed, {event.failed} failed, {event.held} held"
    return Phrase("idle", f"nothing is left to do ({counts})", logging.INFO, STRONG, quiet=True)


def _folded(event: happened.FindingsFolded) -> Phrase:
    if event.status not in REPORTING:
        text = f"{event.tool} did not scan ({event.status}): {event.reason}"
        return Phrase("scan", text, logging.WARNING, WARN)
    if event.status == ScanStatus.UNCALLED:
        return Phrase(
            "scan", f"{event.tool} is no longer called for ({event.closed} gone): {event.reason}", logging.INFO
        )
    if event.unchanged:
        return Phrase("scan", f"{event.tool} was not run: nothing that it reads has changed", logging.DEBUG)
    if event.status == ScanStatus.PARTIAL:
        text = f"{event.tool} saw a part only ({event.opened} new, none closed): {event.reason}"
        return Phrase("scan", text, logging.WARNING, WARN)
    news = event.opened or event.closed or event.queued
    back = f", {event.reopened} of them fixed before" if event.reopened else ""
    found = f"{event.tool} found {event.total} ({event.opened} new{back}, {event.closed} gone)"
    return Phrase(
        "scan",
        f"{found}, {plural(event.queued, 'task')} written, in {duration(event.took_s)}",
        logging.INFO if news else logging.DEBUG,
    )


def _looking(event: happened.ScanTakesLong) -> Phrase:
    text = f"{event.tool} has been at it for {duration(event.so_far_s)}; a first look may take minutes"
    return Phrase("scan", text)


def _judged(event: happened.FindingsJudged) -> Phrase:
    why = f": {event.reason}" if event.reason else ""
    return Phrase("findings", f"{plural(event.count, 'finding')} {event.verdict}{why}", logging.INFO)


def _gate_broke(event: happened.GateBroke) -> Phrase:
    if event.tasks:
        who = event.tasks[0] if len(event.tasks) == 1 else plural(len(event.tasks), "task")
        return Phrase("gate", f"{who} cannot land yet: {event.reason}", logging.ERROR, BAD)
    return Phrase("gate broken", f"{event.command}: {event.reason}; nothing lands until it works", logging.ERROR, BAD)


def _gate_judged(event: happened.GateJudged) -> Phrase:
    which = event.tasks[0] if len(event.tasks) == 1 else plural(len(event.tasks), "task")
    told = [event.reason] if event.reason and event.verdict != "passed" else []
    told += [f"untested: {event.untested}"] if event.untested and event.verdict != "broken" else []
    why = ": " + "; ".join([*told, *event.notes]) if told or event.notes else ""
    weighty = event.verdict == "failed" or (event.verdict == "passed" and event.untested)
    level, style = (logging.INFO, WARN) if weighty else (logging.DEBUG, DIM)
    return Phrase("gate", f"{which} {event.verdict} in {duration(event.took_s)}{why}", level, style)


def _gate_mended(event: happened.GateMended) -> Phrase:
    return Phrase("gate", f"works again after {duration(event.stopped_s)}", logging.INFO, GOOD)


def _gateway_ready(event: happened.GatewayReady) -> Phrase:
    text = f"model calls pass through {event.url} to {' and '.join(event.upstreams)}"
    if not event.upstreams:
        text = f"{event.url} takes model calls and has no upstream: set ANTHROPIC_API_KEY or [gateway] anthropic_url"
        return Phrase("gateway", text, logging.WARNING, WARN)
    return Phrase("gateway", text, quiet=True)


def _knob_turned(event: happened.KnobTurned) -> Phrase:
    return Phrase("knob", f"{event.knob} is {event.new:g} now, it was {event.old:g}: {event.reason} ({event.author})")


def _incident(event: happened.IncidentSeen) -> Phrase:
    size = f": {event.size}" if event.size else ""
    text = f"{event.number}: {event.cause}{size} ({', '.join(event.metrics[:3])}{', …' * (len(event.metrics) > 3)})"
    critical = event.level == "critical"
    return Phrase("incident", text, logging.ERROR if critical else logging.WARNING, BAD if critical else WARN)


def _incident_ended(event: happened.IncidentEnded) -> Phrase:
    text = f"{event.number} is over after {duration(event.lasted_s)} ({event.cause})"
    return Phrase("incident", text, logging.INFO, GOOD)


def _noticed(event: happened.Noticed) -> Phrase:
    return Phrase(event.subject, event.message, logging.WARNING, WARN)


def _role_mended(event: happened.RoleMended) -> Phrase:
    return Phrase("role", f"role {event.role} works again", logging.INFO, GOOD)


def _role_paused(event: happened.RolePaused) -> Phrase:
    return Phrase("role", event.reason, logging.WARNING, WARN)


def _request_served(event: happened.RequestServed) -> Phrase:
    said = f"{event.ending} ({event.status})" if event.status else event.ending
    text = f"{event.task}/{event.generation} {event.path} {said} in {duration(event.took_s)}"
    return Phrase("call", text, logging.DEBUG, DIM)


def _service_failed(event: happened.ServiceFailed) -> Phrase:
    text = f"{event.service} failed and is restarted in {duration(event.after_s)}: {event.error}"
    return Phrase("fault", text, logging.ERROR, BAD)


def _reclaimed(event: happened.SpaceReclaimed) -> Phrase:
    refs = f", {plural(event.refs, 'rescue ref')} of landed work" if event.refs else ""
    homes = f", {plural(event.homes, 'home')}" if event.homes else ""
    what = f"{plural(event.attempts, 'old attempt')}{homes}{refs}"
    text = f"{size(event.freed_bytes)} given back: {what}; {size(event.kept_bytes)} are kept"
    return Phrase("space", text, quiet=True)


def _spool(event: happened.SpoolRead) -> Phrase:
    text = f"{plural(event.tasks, 'task')} in {plural(event.files, 'file')}"
    if not event.problems:
        return Phrase("tasks", text, quiet=True)
    more = f" (and {len(event.problems) - 1} more)" if len(event.problems) > 1 else ""
    return Phrase(
        "tasks", f"{text}, {plural(len(event.problems), 'problem')}: {event.problems[0]}{more}", logging.WARNING, WARN
    )


def _changed(event: happened.TaskChanged) -> Phrase:
    match event.new:
        case TaskState.CLAIMED:
            text = f"{_titled(event.task, event.title)}, {_PID.sub('', event.reason)}"
            return Phrase("started", text, quiet=True)
        case TaskState.FAILED | TaskState.REJECTED:
            return Phrase(event.new, f"{event.task}: {event.reason}", logging.ERROR, BAD)
        case TaskState.BLOCKED | TaskState.HELD | TaskState.CANCELLED:
            return Phrase(event.new, f"{event.task}: {event.reason}", logging.WARNING, WARN)
        case TaskState.PENDING if event.old in _WORKING:
            return Phrase("again", f"{event.task}: {event.reason}", logging.WARNING, WARN)
        case TaskState.COMPLETED if event.old != TaskState.LANDING:
            return Phrase("completed", f"{event.task}: {event.reason}", logging.INFO, GOOD)
        case _:
            moved = f"{event.old} → {event.new}" if event.old else event.new
            return Phrase("task", f"{event.task}: {moved}, {event.reason}", logging.DEBUG, DIM)


def _landed(event: happened.TaskLanded) -> Phrase:
    files = event.files[0] if len(event.files) == 1 else plural(len(event.files), "file")
    text = f"{_titled(event.task, event.title)}, {files}, {event.commit[:10]}"
    if event.untested:
        return Phrase("landed", f"{text}, untested: {event.untested}", logging.INFO, WARN)
    return Phrase("landed", text, logging.INFO, GOOD)


_TELLERS: Mapping[type[Event], Callable[..., Phrase]] = {
    happened.AgentExited: _agent_exited,
    happened.AgentHealthChanged: _agent_health,
    happened.AgentStarted: _agent_started,
    happened.AttemptEnded: _attempt_ended,
    happened.ClockStepped: _clock_stepped,
    happened.CallsCounted: _calls_counted,
    happened.DaemonDraining: _draining,
    happened.DaemonReady: _ready,
    happened.DaemonReloading: _reloading,
    happened.DaemonStopped: _stopped,
    happened.FindingsFolded: _folded,
    happened.ScanTakesLong: _looking,
    happened.FindingsJudged: _judged,
    happened.FleetIdle: _idle,
    happened.GateBroke: _gate_broke,
    happened.GateJudged: _gate_judged,
    happened.GateMended: _gate_mended,
    happened.GatewayReady: _gateway_ready,
    happened.IncidentEnded: _incident_ended,
    happened.IncidentSeen: _incident,
    happened.KnobTurned: _knob_turned,
    happened.Noticed: _noticed,
    happened.ReloadRefused: _reload_refused,
    happened.RequestServed: _request_served,
    happened.RoleMended: _role_mended,
    happened.RolePaused: _role_paused,
    happened.ServiceFailed: _service_failed,
    happened.SpaceReclaimed: _reclaimed,
    happened.SpoolRead: _spool,
    happened.TaskChanged: _changed,
    happened.TaskLanded: _landed,
}

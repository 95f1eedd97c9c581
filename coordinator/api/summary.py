"""What one run of the daemon achieved, folded from its events: found, landed, refused and why, failed, where to look.

Owns one invariant: every number is counted from an event of this run or read from the ledger; nothing is estimated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.api.phrase import said, test_remedy
from coordinator.api.view import BAD, DIM, GOOD, STRONG, WARN, Line, cut, duration, facts, line, pad, plural, span, wrap
from coordinator.domain import event as happened
from coordinator.domain.attempt import Ending
from coordinator.domain.finding import CLOSING, REPORTING
from coordinator.domain.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from coordinator.domain.event import Published

_REFUSED = frozenset(
    {Ending.CONFLICT, Ending.DELETED_TESTS, Ending.EMPTY, Ending.GATE_FAILED, Ending.OUTSIDE_PATHS, Ending.STALE}
)
"""Endings where the agent was done and the daemon said no."""
_LISTED = 12


@dataclass(slots=True)
class RunSummary:
    """A tap of the bus; call ``data`` when the run is over."""

    began: datetime | None = None
    ended: datetime | None = None
    failures: dict[str, str] = field(default_factory=dict)
    gate: str = ""
    landed: list[dict[str, Any]] = field(default_factory=list)
    parked: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    refused: list[dict[str, Any]] = field(default_factory=list)
    scans: dict[str, dict[str, Any]] = field(default_factory=dict)
    target: str = ""
    unsuccessful: Counter[str] = field(default_factory=Counter)
    untested: dict[str, str] = field(default_factory=dict)

    def take(self, published: Published) -> None:
        """Fold one event."""
        self.began = self.began or published.at
        self.ended = published.at
        match published.event:
            case happened.AttemptEnded() as event if event.ending != Ending.LANDED:
                self._ended(event)
            case happened.DaemonReady() as event:
                self.target = event.target
            case happened.DaemonStopped() as event:
                self.reason = event.reason
            case happened.FindingsFolded() as event:
                self._scanned(event)
            case happened.GateBroke() as event:
                self._broke(event)
            case happened.GateJudged() as event if event.verdict == "passed":
                self.untested |= dict.fromkeys(event.tasks, event.untested)
            case happened.GateMended():
                self.gate = ""
            case happened.TaskChanged() as event:
                self._changed(event)
            case happened.TaskLanded() as event:
                self._landed(event)

    def _broke(self, event: happened.GateBroke) -> None:
        """Of everybody, or of single tasks that wait beside the line."""
        if event.tasks:
            self.parked |= dict.fromkeys(event.tasks, event.reason)
        else:
            self.gate = f"{event.command}: {event.reason}"

    def _landed(self, event: happened.TaskLanded) -> None:
        row = {"task": event.task, "title": event.title, "commit": event.commit, "files": list(event.files)}
        self.landed.append({**row, "untested": event.untested or self.untested.get(event.task, "")})

    def _ended(self, event: happened.AttemptEnded) -> None:
        self.unsuccessful[event.ending] += 1
        if event.ending in _REFUSED:
            row = {"task": event.task, "generation": event.generation, "ending": event.ending, "reason": event.reason}
            self.refused.append(row)

    def _changed(self, event: happened.TaskChanged) -> None:
        self.failures.pop(event.task, None)
        if event.new not in (TaskState.VALIDATING, TaskState.LANDING):
            self.parked.pop(event.task, None)
        if event.new == TaskState.FAILED:
            self.failures[event.task] = event.reason

    def _scanned(self, event: happened.FindingsFolded) -> None:
        scan = self.scans.setdefault(event.tool, {"tool": event.tool, "found": 0, "fixed": 0, "left": None})
        scan["status"], scan["reason"] = event.status, event.reason
        if event.status in REPORTING:
            first = scan["left"] is None
            scan["found"] += event.total if first else event.opened
            scan["fixed"] += 0 if first else event.closed
            whole = event.status in CLOSING or first  # what a look at a part did not see may be there
            scan["left"] = event.total if whole else scan["left"] + event.opened

    def data(self, counts: Mapping[str, int], top: str) -> dict[str, Any]:
        """The whole summary as JSON; ``counts`` are the ledger's tasks by state, ``top`` the repository."""
        took = (self.ended - self.began).total_seconds() if self.began and self.ended else 0.0
        return {
            "kind": "run_summary",
            "attempts_not_landed": dict(sorted(self.unsuccessful.items())),
            "failed": [{"task": task, "reason": reason} for task, reason in sorted(self.failures.items())],
            "findings": [self.scans[tool] for tool in sorted(self.scans)],
            "gate_broken": self.gate,
            "gate_parked": [{"task": task, "reason": reason} for task, reason in sorted(self.parked.items())],
            "landed": self.landed,
            "reason": self.reason,
            "refused": self.refused,
            "repository": top,
            "target": self.target,
            "tasks": dict(sorted(counts.items())),
            "took_s": round(took, 3),
        }


def show_summary(data: Mapping[str, Any], width: int) -> list[Line]:
    """The last screen of a run."""
    ended = f"Run ended after {duration(data['took_s'])}: {said(data['reason'] or 'it broke off')}"
    lines: list[Line] = [line(), *wrap(ended, width, style=STRONG)]
    for scan in data["findings"]:
        lines += facts([("Found", _scan_sentence(scan))], width)
    lines += facts([("Landed", _landed_sentence(data))], width)
    lines += [line("  ", span("+ ", GOOD), cut(_landing(row), width - 4)) for row in data["landed"][:_LISTED]]
    if len(data["landed"]) > _LISTED:
        lines.append(line(span(f"  … and {len(data['landed']) - _LISTED} more", DIM)))
    lines += _untested_lines(data, width)
    lines += _refused_lines(data, width)
    lines += _listed("Failed", plural(len(data["failed"]), "task"), data["failed"], width, BAD)
    waiting = _left_over(data["tasks"])
    if waiting:
        lines += facts([("Left", waiting)], width)
    if data["gate_broken"]:
        lines += wrap(f"The gate is broken, nothing lands: {data['gate_broken']}", width, style=BAD)
    if data["gate_parked"]:
        who = plural(len(data["gate_parked"]), "task")
        text = f"{who} done, but not landed: {data['gate_parked'][0]['reason']}"
        lines += wrap(text, width, style=BAD)
    return lines + _where_to_look(data, width)


def _scan_sentence(scan: Mapping[str, Any]) -> str:
    if scan["left"] is None:
        return f"{scan['tool']} did not scan ({scan['status']}): {scan['reason']}"
    text = f"{plural(scan['found'], 'finding')} by {scan['tool']}: {scan['fixed']} fixed, {scan['left']} left"
    if not scan["found"]:
        text = f"nothing by {scan['tool']}"
    if scan["status"] not in REPORTING:
        text += f" (its last scan was {scan['status']}: {scan['reason']})"
    return text


def _landed_sentence(data: Mapping[str, Any]) -> str:
    if not data["landed"]:
        return "nothing"
    return f"{plural(len(data['landed']), 'task')} on {data['target']}"


def _untested_lines(data: Mapping[str, Any], width: int) -> list[Line]:
    """One warning for all that landed without the project's tests."""
    rows = [row for row in data["landed"] if row["untested"]]
    if not rows:
        return []
    why = rows[-1]["untested"]
    text = f"{len(rows)} of them untested: {why}; to have them tested, {test_remedy(why)}"
    return wrap(text, width, indent=4, first="  ! ", style=WARN)


def _landing(row: Mapping[str, Any]) -> str:
    return f"{row['commit'][:10]}  {row['title'] or row['task']}"


def _refused_lines(data: Mapping[str, Any], width: int) -> list[Line]:
    """The last refusal of each task; those of failed tasks are told there."""
    failed = {row["task"] for row in data["failed"]}
    last = {row["task"]: row for row in data["refused"]}
    rows = [row for task, row in last.items() if task not in failed]
    label = f"{plural(len(data['refused']), 'attempt')} of {plural(len(last), 'task')}"
    return _listed("Refused", label, rows, width, WARN) if last else []


def _listed(label: str, counted: str, rows: list[Mapping[str, Any]], width: int, style: str) -> list[Line]:
    if not rows and label == "Failed":
        return []
    lines = facts([(label, counted)], width)
    for row in rows[:_LISTED]:
        why = f"{row['ending'].replace('_', ' ')}: {row['reason']}" if "ending" in row else row["reason"]
        text = cut(f"{row['task']}: {why}", 3 * width)
        head, *rest = wrap(text, width, indent=6, first="  - ")
        lines += [(span("  - ", style), *head[1:]), *rest]
    if len(rows) > _LISTED:
        lines.append(line(span(f"  … and {len(rows) - _LISTED} more: coordinator tasks list", DIM)))
    return lines


def _left_over(counts: Mapping[str, int]) -> str:
    states = ("pending", "ready", "claimed", "running", "validating", "landing", "blocked", "held", "rejected")
    return ", ".join(f"{counts[state]} {state}" for state in states if counts.get(state))


def _where_to_look(data: Mapping[str, Any], width: int) -> list[Line]:
    steps = []
    if data["landed"]:
        target = data["target"]
        steps += [
            (f"git log -p HEAD..{target}", "what landed, commit by commit"),
            (f"git merge {target}", "take it into your branch"),
        ]
    troubled = data["failed"] or data["refused"]
    if troubled:
        task = troubled[0]["task"]
        steps += [(f"coordinator explain {task}", "why"), (f"coordinator logs {task}", "what its agent said")]
    if any(scan["left"] for scan in data["findings"]):
        steps.append(("coordinator findings list", "what was found and is left, the worst first"))
    steps.append(("coordinator status", "where everything stands"))
    lines: list[Line] = [line(), line(span("Where to look:", STRONG))]
    column = max(len(command) for command, _ in steps)
    if column + max(len(what) for _, what in steps) + 4 <= width:
        lines += [line("  ", pad(command, column), span("  " + what, DIM)) for command, what in steps]
    else:  # a command is there to be copied: it is never cut, the words go above it
        for command, what in steps:
            lines += [line("  ", span(what + ":", DIM)), *wrap(command, width, indent=6, first="    ")]
    return lines

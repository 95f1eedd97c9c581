"""The verbs about one task's story: explain and logs.

Owns one invariant: a task that is not at work is explained in one sentence that names the cause. It reads what is on
record and invents nothing.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import stat
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from coordinator.api.activity import diagnose, shown_of, usage
from coordinator.api.phrase import test_remedy
from coordinator.api.verb import Reply, Verb, operand, option
from coordinator.api.verbs_tasks import STATE_STYLES, TaskArguments, read_spool, task_row
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
from coordinator.domain.attempt import Ending
from coordinator.domain.errors import PermanentError, UnknownTask
from coordinator.domain.task import OWNED, TaskState
from coordinator.fleet import sighting
from coordinator.kit.git_history import read_commit
from coordinator.sdk.layout import rescue_ref

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from coordinator.api.desk import Desk

_LOOK_S = 0.2
_LONGEST_LINE = 64 * 1024
_FEEDBACK_SHOWN = 26
_FILES_SHOWN = 10
_HISTORY_SHOWN = 12
_JOURNAL_READ = 20_000


async def explain(desk: Desk, arguments: TaskArguments) -> Reply:
    try:
        row = task_row(desk, arguments.task)
    except UnknownTask:
        return await _explain_from_files(desk, arguments.task)
    attempts = [_attempt(desk, one) for one in desk.rows("attempts_of", task=row["id"]) if one["claimed_at"]]
    for attempt in attempts:
        attempt["health"] = await asyncio.to_thread(_health, desk, row, attempt)
    judged = _judged(desk, row["id"])
    data = {
        "id": row["id"],
        "title": row["title"],
        "state": row["state"],
        "sentence": _sentence(desk, row, attempts, judged),
        "reason": row["reason"],
        "file": row["file"],
        "line": row["line"],
        "commit": row["commit_hash"],
        "attempts": attempts,
        "feedback": row["feedback"],
        "history": _history(desk, row["id"]),
        "judged": judged,
        "landed": await asyncio.to_thread(_landed, desk, row["commit_hash"]),
    }
    return Reply(data=data)


def _landed(desk: Desk, commit: str) -> dict[str, Any] | None:
    """What the task's commit on the target is like; None when there is none."""
    story = read_commit(desk.root, commit) if commit else None
    if story is None:
        return None
    files = [{"path": one.path, "inserted": one.inserted, "deleted": one.deleted} for one in story.files]
    data = {"author": story.author, "at": story.at.isoformat(), "files": files, "subject": story.subject}
    return {**data, "changed": story.changed, "inserted": story.inserted, "deleted": story.deleted}


async def _explain_from_files(desk: Desk, task_id: str) -> Reply:
    """A task that the ledger does not know: rejected, or too new."""
    state = await read_spool(desk)
    data: dict[str, Any] = {"id": task_id, "title": "", "reason": "", "file": "", "line": 0, "commit": ""}
    data |= {"attempts": [], "feedback": "", "history": [], "judged": None, "landed": None}
    if task_id in state.rejected:
        cause = state.rejected[task_id]
        data |= {"state": "rejected", "reason": cause, "sentence": f"{task_id} is rejected: {cause}."}
        return Reply(data=data)
    task = state.tasks.get(task_id)
    if task is None:
        task_row(desk, task_id)  # raises, with ids that look like it
        raise UnknownTask(f"there is no task {task_id!r}")
    cause = "no daemon has read its file yet; `coordinator run` starts one"
    data |= {"title": task.headline, "file": task.file, "line": task.line, "state": "pending", "reason": cause}
    return Reply(data={**data, "sentence": f"{task_id} is pending: {cause}."})


def _attempt(desk: Desk, row: sqlite3.Row) -> dict[str, Any]:
    keys = ("generation", "agent", "pid", "host", "claimed_at", "ended_at", "ending", "reason", "exit_code")
    data = {key: row[key] for key in keys}
    data |= {"duration_s": row["duration_s"], "cost_usd": row["cost_usd"]}
    folder = desk.layout.attempt(row["task"], row["generation"])
    data["folder"] = str(folder)
    data["rescue_ref"] = rescue_ref(row["task"], row["generation"]) if row["rescue"] else ""
    return data


def _health(desk: Desk, row: sqlite3.Row, attempt: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is made of an attempt that is under way, and what it does; None for any other."""
    task_id, generation = row["id"], attempt["generation"]
    if row["state"] not in OWNED or generation != row["generation"] or attempt["ended_at"]:
        return None
    seen = sighting.look(desk.layout, task_id, generation)
    if not seen.held:
        return None
    return {**shown_of(seen.vitals), **diagnose(desk, task_id, generation, row["role"], seen)}


def _history(desk: Desk, task_id: str) -> list[dict[str, Any]]:
    found = []
    for row in desk.rows("journal_of", task=task_id):
        if row["kind"] == "task_changed":
            data = json.loads(row["data"])
            found.append({"at": row["at"], "old": data["old"], "new": data["new"], "reason": data["reason"]})
    return found


def _judged(desk: Desk, task_id: str) -> dict[str, Any] | None:
    """The gate's last word on the task that is still in the journal."""
    for row in reversed(desk.rows("journal_last", limit=_JOURNAL_READ)):
        if row["kind"] == "gate_judged":
            data = json.loads(row["data"])
            if task_id in data["tasks"]:
                keys = ("verdict", "reason", "notes", "untested")
                return {"at": row["at"], **{key: data.get(key, [] if key == "notes" else "") for key in keys}}
    return None


def _show_judged(data: Mapping[str, Any], width: int) -> list[Line]:
    judged = data["judged"]
    notes = list(judged["notes"])
    if judged["untested"] and judged["verdict"] != "broken":
        notes.insert(0, f"untested: {judged['untested']}; {test_remedy(judged['untested'])}")
    style = GOOD if judged["verdict"] == "passed" else BAD
    told = f": {judged['reason']}" if judged["verdict"] != "passed" and judged["reason"] else ""
    lines = [line(), *wrap(f"Gate: {judged['verdict']}{told}", width, indent=6, style=style)]
    return lines + [row for note in notes for row in wrap(note, width, indent=4, first="  - ", style=WARN)]


def _sentence(desk: Desk, row: sqlite3.Row, attempts: list[dict[str, Any]], judged: Mapping[str, Any] | None) -> str:
    """The cause in one sentence."""
    task_id, reason = row["id"], row["reason"] or "nothing more is on record"
    match row["state"]:
        case TaskState.CLAIMED | TaskState.RUNNING:
            seen = sighting.look(desk.layout, task_id, row["generation"])
            who = seen.record.holder if seen.record is not None else "an agent"
            note = f": {seen.note}" if seen.note else ""
            verb = "works on it" if seen.held else "has let go of it; what it left is collected next"
            return f"{task_id} is {row['state']}: {who} {verb}{note}."
        case TaskState.VALIDATING if judged is not None and judged["verdict"] == "broken":
            return f"{task_id} is validating: the gate could not judge it, {judged['reason']}."
        case TaskState.COMPLETED:
            on = f" on {desk.settings.land.target}" if row["commit_hash"] else ""
            return f"{task_id} is completed{on}: {reason}."
        case TaskState.PENDING:
            wait_s = row["not_before"] - desk.clock.now().timestamp()
            when = f" (next attempt in {duration(wait_s)})" if wait_s > 0 else ""
            idle = "" if desk.live is not None else "; no daemon is running to start it"
            return f"{task_id} is pending: {reason}{when}{idle}."
        case TaskState.READY:
            idle = "" if desk.live is not None else "; no daemon is running, only agents from outside can take it"
            return f"{task_id} is ready: {reason}{idle}."
        case TaskState.FAILED:
            return f"{task_id} is failed after {plural(len(attempts), 'attempt')}: {reason}."
        case state:
            return f"{task_id} is {state}: {reason}."


def show_explain(data: Mapping[str, Any], width: int) -> list[Line]:
    lines = wrap(data["sentence"], width, style=STATE_STYLES.get(data["state"], "") or STRONG)
    if data["file"]:
        lines += facts([("title", data["title"]), ("written in", f"{data['file']}:{data['line']}")], width)
    for attempt in data["attempts"]:
        lines += [line(), *_show_attempt(attempt, width)]
    if data["judged"]:
        lines += _show_judged(data, width)
    lines += _show_landed(data, width) if data["landed"] else _show_feedback(data, width)
    if data["history"]:
        lines += [line(), line(span("History:", STRONG))]
    for row in data["history"][-_HISTORY_SHOWN:]:
        text = f"{row['new']}: {row['reason']}"
        moment = f"  {local_time(row['at'])}  "
        lines += wrap(cut(text, 3 * width), width, indent=len(moment), first=moment)
    return lines + _what_helps(data, width)


def _show_attempt(attempt: Mapping[str, Any], width: int) -> list[Line]:
    ending = attempt["ending"] or "at work"
    style = GOOD if ending == Ending.LANDED else (BAD if attempt["ending"] else "")
    took = f" after {duration(attempt['duration_s'])}" if attempt["duration_s"] else ""
    head = line(span(f"Attempt {attempt['generation']}", STRONG), " by ", attempt["agent"] or "an agent", ": ")
    lines: list[Line] = [(*head, span(ending.replace("_", " "), style), span(took))]
    pairs = [("reason", attempt["reason"] or "-"), ("output", attempt["folder"])]
    if attempt["health"]:
        told = attempt["health"]
        pairs[:1] = [("health", f"{told['state'].replace('_', ' ')}: {told['reason']}"), ("uses", usage(told) or "-")]
    if attempt["rescue_ref"]:
        pairs.append(("its work", f"git show {attempt['rescue_ref']}"))
    for name, value in pairs:
        lines += [(span("  "), *row) for row in facts([(name, value)], width - 2, label=10)]
    return lines


def _show_landed(data: Mapping[str, Any], width: int) -> list[Line]:
    landed = data["landed"]
    size = f"{plural(landed['changed'], 'file')}, +{landed['inserted']} -{landed['deleted']} lines"
    lines = [line(), line(span("Landed: ", STRONG), f"{data['commit'][:10]} by {landed['author']}, {size}")]
    for one in landed["files"][:_FILES_SHOWN]:
        lines += wrap(f"{one['path']}  +{one['inserted']} -{one['deleted']}", width, indent=4, first="  ")
    more = landed["changed"] - _FILES_SHOWN
    return [*lines, line(f"  … and {more} more: git show --stat {data['commit'][:10]}")] if more > 0 else lines


def _show_feedback(data: Mapping[str, Any], width: int) -> list[Line]:
    """What the next attempt is told, or would be: the end of it is the output that says what went wrong."""
    texts = [text for text in data["feedback"].splitlines() if text.strip()]
    if len(texts) < 2:  # one line is the reason, which stands above
        return []
    lines = [line(), line(span("What the last attempt was told:", STRONG))]
    for text in texts[-_FEEDBACK_SHOWN:]:
        lines.append(line("  ", cut(text, width - 2)))
    return lines


def _what_helps(data: Mapping[str, Any], width: int) -> list[Line]:
    task_id = data["id"]
    advice = {
        TaskState.CANCELLED: f"coordinator tasks retry {task_id}",
        TaskState.FAILED: f"coordinator logs {task_id}; edit {data['file']} or coordinator tasks retry {task_id}",
        TaskState.HELD: f"coordinator tasks release {task_id}",
        TaskState.REJECTED: "coordinator tasks check",
    }.get(data["state"])
    return [line(), *wrap(f"Next: {advice}", width, indent=6, style=DIM)] if advice else []


# -- logs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LogArguments:
    task: str = operand("id of a task", metavar="ID")
    follow: bool = option("wait for more until the attempt is over", default=False, short="-f")
    attempt: int = option("which attempt; 0: the newest", default=0, short="-a", metavar="N")
    lines: int = option("only the last N lines; 0: all", default=0, short="-n", metavar="N")


async def logs(desk: Desk, arguments: LogArguments) -> AsyncIterator[Mapping[str, Any]]:
    """Lines of the agent's output, as they are written when following."""
    row = task_row(desk, arguments.task)
    generation = arguments.attempt or _newest(desk, row)
    path = desk.layout.attempt(row["id"], generation) / "agent.log"
    over = not arguments.follow or _over(desk, row["id"], generation)
    while (file := open_log(path)) is None:
        if over:
            raise PermanentError(
                f"attempt {generation} of {row['id']} left no output ({row['state']}: {row['reason']})"
            )
        await asyncio.sleep(_LOOK_S)
        over = _over(desk, row["id"], generation)
    with file:
        pieces = _Pieces(file)
        for text in _last(pieces.read(), pieces, arguments.lines, over=over):
            yield {"generation": generation, "line": text}
        while not over:
            await asyncio.sleep(_LOOK_S)
            over = _over(desk, row["id"], generation)
            for text in pieces.read():
                yield {"generation": generation, "line": text}
        if pieces.rest:
            yield {"generation": generation, "line": pieces.rest}


def _newest(desk: Desk, row: sqlite3.Row) -> int:
    folder = desk.layout.attempts / row["id"]
    try:
        found = [int(name) for name in os.listdir(folder) if name.isdigit()]
    except FileNotFoundError:
        found = []
    begun = [number for number in found if (folder / str(number) / "agent.log").exists()]
    if not begun and not found:
        raise PermanentError(f"{row['id']} has not been attempted yet; it is {row['state']}: {row['reason']}")
    return max(begun or found)


def _over(desk: Desk, task_id: str, generation: int) -> bool:
    rows = desk.rows("task_get", id=task_id)
    if not rows or rows[0]["generation"] != generation:
        return True
    return rows[0]["state"] not in (*OWNED, TaskState.READY)


def open_log(path: Path) -> IO[bytes] | None:
    """None when there is no such regular file: an agent may have put anything in its place."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return os.fdopen(fd, "rb")


class _Pieces:
    """Whole lines out of a growing file; ``rest`` is the last one while it has no end yet."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def read(self) -> Iterator[str]:
        while data := self._file.read(_LONGEST_LINE):
            *whole, self.rest = (self.rest + self._decoder.decode(data)).split("\n")
            yield from whole
            if len(self.rest) > _LONGEST_LINE:
                yield self.rest
                self.rest = ""


def _last(lines: Iterator[str], pieces: _Pieces, count: int, *, over: bool) -> Iterator[str]:
    """Only the last ``count`` lines, of which one may have no end yet when nothing more will come."""
    if count <= 0:
        yield from lines
        return
    kept = deque(lines, maxlen=count)
    if over and pieces.rest and len(kept) == count:
        kept.popleft()
    yield from kept


def show_log_line(data: Mapping[str, Any], _: int) -> list[Line]:
    return [line(data["line"])]


VERBS = (
    Verb(
        name="explain",
        arguments=TaskArguments,
        call=explain,
        doc="Say in one sentence why a task is where it is, and tell its story.",
        show=show_explain,
    ),
    Verb(
        name="logs",
        arguments=LogArguments,
        stream=logs,
        doc="Print what the agent of a task printed.",
        example="coordinator logs -f fix-the-parser",
        show=show_log_line,
    ),
)

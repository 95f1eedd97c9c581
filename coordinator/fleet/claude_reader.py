"""Understands what Claude Code prints (``--output-format stream-json``): what it does now, and how it ended.

Owns one invariant: whatever a line holds, reading it never fails and never grows what is remembered without bound. How it
ended is said by the last ``result`` line, by what was refused and by the system, never by the exit code alone.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

from coordinator.domain.vitals import Doing
from coordinator.fleet.claude_verdict import LastWord, Trouble, unfinished, verdict
from coordinator.fleet.driver import Ended, Glimpse, Said
from coordinator.fleet.json_line import digest, number, object_of, screen_line, subject, table, tables, text
from coordinator.fleet.repeats import Repeats

_CUT_BYTES: Final = 1024 * 1024
"""A line as long as this may be the beginning of a longer one."""

_MOST_IN_FLIGHT: Final = 64
_MOST_REFUSED: Final = 64

_REFUSALS_OF_LOGIN: Final = 3
"""The program tries a refused key ten times in three minutes. The first two may be a key that is just being exchanged; the
third comes within 3 s of the first."""

_READING: Final = frozenset(
    {"Glob", "Grep", "ListAgents", "LS", "Read", "ReportFindings", "Skill", "TodoWrite", "ToolSearch", "WebFetch"}
    | {"WebSearch"}
)
"""Tools that leave the tree as it was."""

_SESSION: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A tool in flight. ``mark`` tells equal calls."""

    limit_s: float
    mark: bytes
    note: str
    tool: str


class ClaudeReader:
    """``bash_default_s`` and ``bash_most_s`` are the time-outs of shell commands; ``gateway``: calls go through ours."""

    def __init__(self, *, bash_default_s: float, bash_most_s: float, gateway: bool) -> None:
        self._bash_default_s = bash_default_s
        self._bash_most_s = bash_most_s
        self._gateway = gateway
        self._background: tuple[str, ...] = ()
        self._cost_usd = 0.0
        self._doing = Doing.STARTING
        self._error = ""
        self._in_flight: dict[str, _Call] = {}
        self._last: LastWord | None = None
        self._message = ""
        self._note = ""
        self._refused: deque[tuple[str, str]] = deque(maxlen=_MOST_REFUSED)
        self._repeated_tool = ""
        self._repeats = Repeats()
        self._reset_at = 0.0
        self._session = ""
        self._touched = False
        self._turns = 0
        self._unwelcome = 0

    # -- reading -----------------------------------------------------------------------------------------------------

    def feed(self, line: bytes) -> None:
        data = object_of(line)
        if data is None:
            if len(line) >= _CUT_BYTES:
                self._cut(line)
            return
        match data.get("type"):
            case "assistant":
                self._assistant(data)
            case "user":
                self._user(data)
            case "system":
                self._system(data)
            case "result":
                self._result(data)
            case "rate_limit_event":
                self._rate_limit(table(data.get("rate_limit_info")))

    def _cut(self, line: bytes) -> None:
        """Too long to be read: only what is safe to conclude from its beginning. A call whose answer is that long is over."""
        head = line[:200]
        if b'"type":"user"' in head.replace(b" ", b"") and len(self._in_flight) == 1:
            self._let_go()
            self._think("read a very long answer")

    def _assistant(self, data: dict[str, Any]) -> None:
        message = table(data.get("message"))
        self._keep_session(data)
        if message.get("model") == "<synthetic>":  # the program's own words: an error of the call
            self._error = text(data.get("error"))
            return
        if data.get("parent_tool_use_id"):
            return  # of a subagent: its own tool stands for it
        self._unwelcome, self._error = 0, ""
        answer = text(message.get("id"))
        if answer != self._message or not answer:
            self._message = answer
            self._turns += 1
            self._let_go()  # it would not have been asked again before all were answered
        self._doing = Doing.THINKING
        for block in tables(message.get("content")):
            if block.get("type") == "tool_use":
                self._begin(block)
            elif block.get("type") == "text":
                self._say(text(block.get("text")))
        if self._in_flight:
            self._doing = Doing.USING_TOOL

    def _begin(self, block: dict[str, Any]) -> None:
        tool, given = screen_line(text(block.get("name"))), table(block.get("input"))
        limit_s = 0.0
        if tool == "Bash":
            wanted_s = number(given.get("timeout")) / 1000
            limit_s = min(wanted_s, self._bash_most_s) if wanted_s > 0 else self._bash_default_s
        note = screen_line(f"{tool} {subject(given)}")
        self._say(note)
        if len(self._in_flight) < _MOST_IN_FLIGHT:
            call = _Call(limit_s=limit_s, mark=digest(tool, given), note=note, tool=tool)
            self._in_flight[text(block.get("id"))] = call

    def _user(self, data: dict[str, Any]) -> None:
        if data.get("parent_tool_use_id"):
            return
        for block in tables(table(data.get("message")).get("content")):
            if block.get("type") == "tool_result":
                self._end(text(block.get("tool_use_id")), block)
        if not self._in_flight:
            self._think("")

    def _end(self, number: str, block: dict[str, Any]) -> None:
        call = self._in_flight.pop(number, None)
        if call is None:
            return
        self._repeats.take(digest(call.mark.hex(), block.get("content")))
        self._repeated_tool = call.tool
        if call.tool not in _READING and all(refused != number for refused, _ in self._refused):
            self._touched = True

    def _let_go(self) -> None:
        """Whatever is still in flight was answered in lines that could not be read."""
        self._touched = self._touched or any(call.tool not in _READING for call in self._in_flight.values())
        self._in_flight.clear()

    def _system(self, data: dict[str, Any]) -> None:
        match data.get("subtype"):
            case "init":
                self._keep_session(data)
                self._think("")
            case "api_retry":
                self._retry(data)
            case "permission_denied":
                number, tool = text(data.get("tool_use_id")), screen_line(text(data.get("tool_name")))
                call = self._in_flight.get(number)
                self._refused.append((number, call.note if call is not None else tool))
            case "background_tasks_changed":
                named = [screen_line(text(task.get("description"))) for task in tables(data.get("tasks"))]
                self._background = tuple(named[:_MOST_IN_FLIGHT])

    def _retry(self, data: dict[str, Any]) -> None:
        status, error = number(data.get("error_status")), text(data.get("error"))
        refused = status in (401, 403) or error == "authentication_failed"
        self._unwelcome = self._unwelcome + 1 if refused else 0
        pause_s = number(data.get("retry_delay_ms")) / 1000
        what = f"{status:.0f}" if status else screen_line(error) or "no answer"
        self._think(f"the call failed ({what}), tries again in {pause_s:.0f} s")

    def _rate_limit(self, info: dict[str, Any]) -> None:
        if info.get("status") == "rejected":
            self._reset_at = max(self._reset_at, number(info.get("resetsAt")))

    def _result(self, data: dict[str, Any]) -> None:
        self._keep_session(data)
        self._spend(data)
        refused = {number for number, _ in self._refused}
        for denial in tables(data.get("permission_denials"))[-_MOST_REFUSED:]:
            call = text(denial.get("tool_use_id"))
            if call not in refused:
                what = f"{text(denial.get('tool_name'))} {subject(table(denial.get('tool_input')))}"
                self._refused.append((call, screen_line(what)))
        errors = data.get("errors")
        first = next((said for said in errors if isinstance(said, str)), "") if isinstance(errors, list) else ""
        self._last = LastWord(
            error=self._error,
            failed=data.get("is_error") is not False,
            status=int(number(data.get("api_error_status"))),
            stop=text(data.get("stop_reason")),
            subtype=text(data.get("subtype")),
            terminal=text(data.get("terminal_reason")),
            text=text(data.get("result")) or text(first),
        )
        self._let_go()
        self._doing = Doing.FINISHED
        self._say(self._last.text)

    def _spend(self, data: dict[str, Any]) -> None:
        """The total that a result names goes on over a conversation that was resumed; what it adds does not."""
        since = data.get("model_usage_since_last_result")
        if isinstance(since, dict):
            self._cost_usd += sum(number(table(usage).get("costUSD")) for usage in since.values())
        else:
            self._cost_usd = max(self._cost_usd, number(data.get("total_cost_usd")))

    def _keep_session(self, data: dict[str, Any]) -> None:
        session = text(data.get("session_id"))
        if _SESSION.fullmatch(session):
            self._session = session

    def _think(self, note: str) -> None:
        self._doing = Doing.THINKING
        self._say(note)

    def _say(self, note: str) -> None:
        self._note = screen_line(note) or self._note

    # -- telling -----------------------------------------------------------------------------------------------------

    def glimpse(self) -> Glimpse:
        seen = Glimpse(
            cost_usd=self._cost_usd,
            doing=self._doing,
            note=self._note,
            repeats=self._repeats.count,
            tool=self._repeated_tool,
            turns=self._turns,
        )
        if self._doing is Doing.USING_TOOL:
            calls = tuple(self._in_flight.values())
            limits = [call.limit_s for call in calls]
            limit_s = max(limits) if all(limits) else 0.0
            return replace(seen, note=calls[-1].note, tool=calls[-1].tool, tool_limit_s=limit_s)
        if self._doing is Doing.FINISHED and self._background:
            note = f"waits for what it left running: {self._background[0]}"
            return replace(seen, doing=Doing.USING_TOOL, note=note, tool="background task")
        return seen

    def doom(self, now: float) -> Said | None:
        if self._unwelcome < _REFUSALS_OF_LOGIN:
            return None
        return self._signed(Trouble(gateway=self._gateway).login("its key was refused again and again"))

    def conclude(self, ended: Ended) -> Said:
        trouble = Trouble(
            gateway=self._gateway,
            now=ended.now,
            refused=tuple(what for _, what in self._refused),
            reset_at=self._reset_at,
            touched=self._touched,
            unwelcome=self._unwelcome > 0,
        )
        died = ended.signal is not None or ended.code not in (0, None)
        if self._last is None or (self._doing is not Doing.FINISHED and died):
            return self._signed(unfinished(ended, trouble))
        return self._signed(replace(verdict(self._last, trouble), exit_code=ended.code))

    def _signed(self, said: Said) -> Said:
        return replace(said, cost_usd=self._cost_usd, session=self._session, turns=self._turns)

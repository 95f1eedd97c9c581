"""What the readers of codex, opencode, gemini and aider share: each prints lines, each in words of its own.

Owns one invariant: how an attempt ended is its program's last word, then the last failure of a call, then what the system
says, in this order; what is remembered of an attempt does not grow. A reader of one program says what its lines mean.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Outcome, Reason
from coordinator.domain.vitals import Doing
from coordinator.fleet import call_failure
from coordinator.fleet.driver import Ended, Glimpse, Said, by_exit
from coordinator.fleet.json_line import digest, screen_line
from coordinator.fleet.repeats import Repeats

if TYPE_CHECKING:
    from coordinator.fleet.call_failure import CallFailure

_LONGEST_SUMMARY: Final = 600
_MOST_IN_FLIGHT: Final = 64
_MOST_REFUSED: Final = 3

READING: Final = frozenset(
    {"glob", "google_web_search", "grep", "grep_search", "list", "list_directory", "read", "read_file"}
    | {
        "read_many_files",
        "search_file_content",
        "skill",
        "todowrite",
        "web_fetch",
        "web_search",
        "webfetch",
        "write_todos",
    }
)
"""Tools that leave the tree as it was."""

_UNWELCOME: Final = 2
"""A key that is refused twice stays refused; the first may be one that is just being exchanged."""
_AWAY: Final = 12
"""Tries in a row that nobody answered. Codex makes them without end and ever slower, the sixth after two and a half minutes:
for several minutes a restart of the daemon's gateway is waited for. The others give up before."""

_SIGNALLED: Final = (129, 130, 131, 134, 137, 139, 143)
"""Exit codes of a program that tells a signal on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool in flight. ``mark`` tells equal calls, ``limit_s`` is the time-out it declared (0: none)."""

    limit_s: float = 0.0
    mark: bytes = b""
    note: str = ""
    tool: str


class LineReader(ABC):
    """``remedy`` names the login of this program; ``misused`` is what it prints when it does not know an option of ours."""

    def __init__(self, *, gateway: bool, misused: str, remedy: str) -> None:
        self._gateway = gateway
        self._misused = re.compile(misused, re.MULTILINE)
        self._remedy = remedy
        self._away = 0
        self._cost_usd = 0.0
        self._doing = Doing.STARTING
        self._failure: CallFailure | None = None
        self._in_flight: dict[str, ToolCall] = {}
        self._note = ""
        self._repeated_tool = ""
        self._repeats = Repeats()
        self._refused: deque[str] = deque(maxlen=_MOST_REFUSED)
        self._session = ""
        self._text = ""
        self._touched = False
        self._turns = 0
        self._unwelcome = 0

    @abstractmethod
    def feed(self, line: bytes) -> None: ...

    # -- what a line may mean ----------------------------------------------------------------------------------------

    def answered(self) -> None:
        """The model answered: what failed before does not count any more."""
        self._away = self._unwelcome = 0
        self._failure = None

    def think(self, note: str = "") -> None:
        self._doing = Doing.THINKING
        self.note(note)

    def note(self, note: str) -> None:
        self._note = screen_line(note) or self._note

    def say(self, text: str) -> None:
        """Words of the model; the last ones are its report."""
        if text.strip():
            self._text = text[-4 * _LONGEST_SUMMARY :]
            self.note(text)

    def begin(self, number: str, call: ToolCall) -> None:
        self._doing = Doing.USING_TOOL
        self.note(call.note)
        if len(self._in_flight) < _MOST_IN_FLIGHT:
            self._in_flight[number] = call

    def end(self, number: str, answer: object, call: ToolCall | None = None) -> None:
        """``call``: of one that is told of only when it is over."""
        call = self._in_flight.pop(number, call)
        if call is None:
            return
        self._touched = self._touched or call.tool not in READING
        self._repeats.take(digest(call.mark.hex(), answer))
        self._repeated_tool = call.tool
        if not self._in_flight:
            self.think(call.note)

    def refuse(self, number: str, call: ToolCall | None = None) -> None:
        """A tool was not run, because nothing allows it and nobody can be asked."""
        call = self._in_flight.pop(number, call)
        self._refused.append(call.note if call is not None else "a tool")
        if not self._in_flight:
            self.think()

    def finish(self) -> None:
        self._in_flight.clear()
        self._doing = Doing.FINISHED

    def again(self, failure: CallFailure) -> None:
        """A call failed, and the program tries again by itself."""
        self._failure = failure
        self._unwelcome = self._unwelcome + 1 if call_failure.is_unwelcome(failure) else 0
        self._away += 1
        self.think(f"the call failed, tries again: {failure.message}")

    def fail(self, failure: CallFailure) -> None:
        """A call failed for good, and with it the conversation."""
        self._failure = failure
        self.note(failure.message)
        self.finish()

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
        if self._doing is not Doing.USING_TOOL:
            return seen
        calls = tuple(self._in_flight.values())
        limits = [call.limit_s for call in calls]
        limit_s = max(limits) if limits and all(limits) else 0.0
        return replace(seen, tool=calls[-1].tool if calls else "", tool_limit_s=limit_s)

    def doom(self, now: float) -> Said | None:
        if self._failure is None or (self._unwelcome < _UNWELCOME and self._away < _AWAY):
            return None
        return self._signed(self._of_failure(self._failure, now))

    def conclude(self, ended: Ended) -> Said:
        died = ended.signal is not None or ended.code in _SIGNALLED
        if self._failure is not None and not died:
            return self._signed(self._of_failure(self._failure, ended.now))
        if self._doing is Doing.FINISHED and ended.signal is None and ended.code in (0, None):
            return self._signed(self._finished())
        return self._signed(self._unfinished(ended))

    def _finished(self) -> Said:
        """Its last word was one of success. What git says of a call that was answered is the daemon's to look at."""
        text = self._text.strip()[:_LONGEST_SUMMARY]
        if not self._refused:
            return Said(outcome=Outcome.DONE, summary=text)
        told = ", ".join(dict.fromkeys(what[:100] for what in self._refused))
        outcome = Outcome.DONE if self._touched else Outcome.FAILED
        return Said(outcome=outcome, reason=Reason.DENIED, summary=f"refused: {told}; {text}"[:_LONGEST_SUMMARY])

    def _of_failure(self, failure: CallFailure, now: float) -> Said:
        return call_failure.said_of(failure, gateway=self._gateway, remedy=self._remedy, now=now)

    def _unfinished(self, ended: Ended) -> Said:
        """It ended without its last word, or against it."""
        code = ended.code or 0
        if ended.signal is not None or code in _SIGNALLED:
            return by_exit(ended if ended.signal is not None else replace(ended, signal=code - 128))
        if code and self._misused.search(ended.log):
            return Said(outcome=Outcome.UNSTARTED, exit_code=code, reason="options", summary=_complaint(ended))
        if code and _NO_SESSION.search(ended.log):
            # its folder was cleaned: the next attempt begins a conversation of its own
            return Said(outcome=Outcome.FAILED, exit_code=code, reason=Reason.UNAVAILABLE, summary=_complaint(ended))
        if code and call_failure.is_known(ended.log):
            said = self._of_failure(call_failure.failure_in(ended.log[-2000:]), ended.now)
            return replace(said, exit_code=code, summary=said.summary if "; set " in said.summary else ended.last)
        if not code:
            summary = f"it ended without its last word: {ended.last}".rstrip(": ")
            return Said(outcome=Outcome.FAILED, exit_code=ended.code, reason="no_result", summary=summary)
        return by_exit(ended)

    def _signed(self, said: Said) -> Said:
        return replace(said, cost_usd=self._cost_usd, session=self._session, turns=self._turns)


_NO_SESSION: Final = re.compile(
    r"no rollout found|session not found|no previous sessions|invalid session identifier", re.IGNORECASE
)
_ERROR: Final = re.compile(r"^(?:error|unknown|invalid).*", re.IGNORECASE | re.MULTILINE)


def _complaint(ended: Ended) -> str:
    """The line that says what is wrong; a usage text may follow it."""
    found = _ERROR.search(ended.log)
    return screen_line(found[0], 300) if found is not None else ended.last

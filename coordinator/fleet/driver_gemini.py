"""Role ``gemini``: how Google's Gemini CLI is started without anybody at the keyboard, and what its events mean.

Owns one invariant: what it must not take from a repository (hooks, servers, the kind of login) is fixed in system settings,
which come before all others. While our gateway runs, neither a card nor a repository decides where it calls.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from coordinator.fleet.call_failure import CallFailure, failure_in
from coordinator.fleet.driver import PROVIDER_VARIABLES, Launch, gateway_variables, google_variables
from coordinator.fleet.json_line import digest, number, object_of, screen_line, subject, table, text
from coordinator.fleet.line_reader import LineReader, ToolCall

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.attempt import Order
    from coordinator.fleet.driver import Reader

_NOBODY: Final = "nobody"
"""A server and an extension of this name do not exist: an allow-list of it is empty."""

_SYSTEM: Final[Mapping[str, object]] = {
    "advanced": {"ignoreLocalEnv": True},
    "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
    "hooksConfig": {"enabled": False},
    "mcp": {"allowed": [_NOBODY]},
    "privacy": {"usageStatisticsEnabled": False},
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "telemetry": {"enabled": False},
}


class GeminiDriver:
    """``command`` of the card is the program; arguments of yours (``--approval-mode``) stay before ours."""

    def launch(self, order: Order, *, python: str) -> Launch:
        if not order.home:
            raise ValueError("gemini needs a folder of its own, and the order names none")
        argv = tuple(python if word == "{python}" else word for word in order.command)
        model = (f"--model={order.model}",) if order.model else ()
        folder = f"{order.home}/{order.generation}"
        settings = json.dumps(_SYSTEM, indent=2) + "\n"
        env = {"HOME": order.home, "TERM": "dumb"} | dict(order.env)
        env |= gateway_variables(order) | google_variables(order)
        env |= {
            "GEMINI_CLI_HOME": folder,
            "GEMINI_CLI_SYSTEM_SETTINGS_PATH": f"{folder}/system.json",
            "TMPDIR": f"{folder}/temporary",  # it leaves a report of each failed call there
            "GEMINI_CLI_TRUST_WORKSPACE": "true",  # without it, it does nothing; what trust would allow is fixed above
        }
        fixed = ("--output-format", "stream-json", "--extensions", "none", "--allowed-mcp-server-names", _NOBODY)
        return Launch(
            argv=(*argv, *fixed, *model),
            drop=PROVIDER_VARIABLES if order.gateway else (),
            env=env,
            # it believes system settings only in a folder that nobody else can write to; its user's it always does
            files=(
                (f"{order.generation}/.gemini/settings.json", settings),
                (f"{order.generation}/system.json", settings),
                (f"{order.generation}/temporary/README", "Files that lived as long as the attempt.\n"),
            ),
            transcript=True,
        )

    def reader(self, order: Order) -> Reader:
        return GeminiReader(gateway=bool(order.gateway))


_REFUSED: Final = re.compile(
    r"denied by policy|requires? (user )?(confirmation|approval)|not (available|allowed)", re.IGNORECASE
)
_WRAPPED: Final = re.compile(r"\[API Error: (.*)\]", re.DOTALL)


class GeminiReader(LineReader):
    """It tells of no model calls: what follows the answer of a tool is taken for a new one."""

    def __init__(self, *, gateway: bool) -> None:
        super().__init__(gateway=gateway, misused=r"^Unknown argument|^Usage: gemini", remedy="GEMINI_API_KEY")
        self._called = True
        self._said = ""

    def feed(self, line: bytes) -> None:
        data = object_of(line) or {}
        match data.get("type"):
            case "init":
                self.think()
            case "message" if data.get("role") == "assistant":
                self._count()
                self._say(data)
            case "tool_use":
                self._count()
                self._begin(data)
            case "tool_result":
                self._end(data)
            case "error":
                self.note(text(data.get("message")))
            case "result":
                self._result(data)

    def _count(self) -> None:
        if self._called:
            self._called = False
            self._turns += 1
            self._said = ""

    def _say(self, data: dict[str, Any]) -> None:
        """An answer comes in pieces."""
        piece = text(data.get("content"))
        self._said = (self._said + piece)[-4000:] if data.get("delta") is True else piece
        self.say(self._said)

    def _begin(self, data: dict[str, Any]) -> None:
        tool, given = screen_line(text(data.get("tool_name"))), table(data.get("parameters"))
        call = ToolCall(mark=digest(tool, given), note=screen_line(f"{tool} {subject(given)}"), tool=tool)
        self.begin(text(data.get("tool_id")), call)

    def _end(self, data: dict[str, Any]) -> None:
        name, output = text(data.get("tool_id")), text(data.get("output"))
        error = text(table(data.get("error")).get("message"))
        if data.get("status") == "error" and _REFUSED.search(error or output):
            self.refuse(name)
        else:
            self.end(name, [output, error])
        self._called = not self._in_flight

    def _result(self, data: dict[str, Any]) -> None:
        if data.get("status") == "success":
            self.answered()
            self.finish()
        else:
            self.fail(_failure(table(data.get("error"))))


def _failure(error: dict[str, Any]) -> CallFailure:
    """The provider's answer is wrapped as it came, or was put into words."""
    said = text(error.get("message"))
    wrapped = _WRAPPED.search(said)
    said = wrapped[1] if wrapped is not None else said
    answer = table((object_of(said.encode()) or {}).get("error"))
    kind = " ".join(one for one in (text(error.get("type")), text(answer.get("status"))) if one != "unknown")
    return failure_in(text(answer.get("message")) or said, status=int(number(answer.get("code"))), kind=kind)

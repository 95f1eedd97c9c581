"""Role ``codex``: how OpenAI's Codex is started without anybody at the keyboard, and what its events mean.

Owns one invariant: its settings are written anew for each attempt, so neither a repository (its settings are not trusted)
nor an earlier attempt decides where it calls or what it may write.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from coordinator.fleet.call_failure import failure_in
from coordinator.fleet.driver import PROVIDER_VARIABLES, Launch, gateway_variables
from coordinator.fleet.json_line import digest, number, object_of, screen_line, subject, table, text
from coordinator.fleet.line_reader import LineReader, ToolCall

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.attempt import Order
    from coordinator.fleet.driver import Reader

_FOLDER: Final = ".codex"
_OWN: Final = "CODEX_HOME"
_THREAD: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_RETRIES: Final = 5
"""Tries after a call that failed; with the pauses that the program makes between them that is half a minute."""


class CodexDriver:
    """``command`` of the card is the program; arguments of yours stay before ours. A card that sets ``CODEX_HOME`` takes the
    settings and the login that are there, as they are, unless our gateway runs."""

    def launch(self, order: Order, *, python: str) -> Launch:
        if not order.home:
            raise ValueError("codex needs a folder of its own, and the order names none")
        argv = tuple(python if word == "{python}" else word for word in order.command)
        resumed = ("resume", order.resume) if _THREAD.fullmatch(order.resume) else ()
        model = (f"--model={order.model}",) if order.model else ()
        own = not order.gateway and _OWN in dict(order.env)
        env = {"HOME": order.home, "TERM": "dumb"} | dict(order.env)
        if not own:
            env |= {_OWN: f"{order.home}/{_FOLDER}"} | gateway_variables(order)
        return Launch(
            argv=(*argv, "exec", "--json", "--skip-git-repo-check", *model, *resumed, "-"),
            drop=PROVIDER_VARIABLES if order.gateway else (),
            env=env,
            files=() if own else ((f"{_FOLDER}/config.toml", _settings(order)),),
            transcript=True,
        )

    def reader(self, order: Order) -> Reader:
        return CodexReader(gateway=bool(order.gateway))


def _settings(order: Order) -> str:
    """Writing is confined to the tree; the network is not, because tests and package managers need it."""
    url = (
        f"{order.gateway}/v1" if order.gateway else dict(order.env).get("OPENAI_BASE_URL", "https://api.openai.com/v1")
    )
    return f"""\
# Written anew for each attempt.
approval_policy = "never"
check_for_update_on_startup = false
model_provider = "coordinator"
sandbox_mode = "workspace-write"

[analytics]
enabled = false

[history]
persistence = "none"

[model_providers.coordinator]
name = "coordinator"
base_url = {json.dumps(url)}
env_key = "OPENAI_API_KEY"
request_max_retries = {_RETRIES - 1}
stream_max_retries = {_RETRIES}
wire_api = "responses"

[sandbox_workspace_write]
network_access = true
"""


_TOOLS: Final[Mapping[str, str]] = {
    "collab_tool_call": "agents",
    "command_execution": "shell",
    "file_change": "edit",
    "mcp_tool_call": "mcp",
    "web_search": "web_search",
}
_RECONNECTS: Final = re.compile(r"Reconnecting\.\.\. (?:\d+/\d+ )?(.*)", re.DOTALL)


class CodexReader(LineReader):
    """It tells of no model calls: what follows the answer of a tool is taken for a new one."""

    def __init__(self, *, gateway: bool) -> None:
        super().__init__(
            gateway=gateway, misused=r"^error: (unexpected|invalid)|^Error loading config", remedy="OPENAI_API_KEY"
        )
        self._called = True

    def feed(self, line: bytes) -> None:
        data = object_of(line) or {}
        match data.get("type"):
            case "thread.started":
                self._keep_thread(text(data.get("thread_id")))
            case "turn.started":
                self._called = True
                self.think()
            case "item.started" | "item.updated" | "item.completed" as what:
                self._item(what, table(data.get("item")))
            case "turn.completed":
                self.answered()
                self.finish()
            case "error":
                self._error(text(data.get("message")))
            case "turn.failed":
                self.fail(failure_in(text(table(data.get("error")).get("message"))))

    def _keep_thread(self, thread: str) -> None:
        if _THREAD.fullmatch(thread):
            self._session = thread

    def _item(self, what: str, item: dict[str, Any]) -> None:
        kind = text(item.get("type"))
        if kind == "error":  # a warning of its own; what ends the turn is told by the turn
            self.note(text(item.get("message")))
            return
        self.answered()
        if self._called:
            self._called = False
            self._turns += 1
        if kind not in _TOOLS:
            if kind == "agent_message":
                self.say(text(item.get("text")))
            return
        call, name = _call(kind, item), text(item.get("id"))
        if what == "item.started":
            self.begin(name, call)
        elif what == "item.completed":
            self.end(name, [item.get("aggregated_output"), item.get("exit_code"), item.get("result")], call)
            self._called = not self._in_flight

    def _error(self, message: str) -> None:
        """A try that failed and is repeated; the last one comes again as the failure of the turn."""
        again = _RECONNECTS.fullmatch(message)
        if again is None:
            self.note(message)
        else:
            self.again(failure_in(again[1].strip("()")))


def _call(kind: str, item: dict[str, Any]) -> ToolCall:
    tool = _TOOLS[kind]
    about = subject(item) or text(item.get("tool")) or ", ".join(_paths(item))
    mark = digest(
        kind, item.get("command"), item.get("changes"), item.get("tool"), item.get("arguments"), item.get("query")
    )
    return ToolCall(mark=mark, note=screen_line(f"{tool} {about}"), tool=tool, limit_s=number(item.get("timeout_s")))


def _paths(item: dict[str, Any]) -> list[str]:
    changes = item.get("changes")
    return [text(table(one).get("path")) for one in changes[:8]] if isinstance(changes, list) else []

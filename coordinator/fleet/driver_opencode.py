"""Role ``opencode``: how opencode is started without anybody at the keyboard, and what its events mean.

Owns one invariant: all its folders are new with each attempt, and no settings of a repository decide where it calls. Plugins
that lie in a repository's ``.opencode`` it runs all the same (1.18 knows no way not to), as it runs the repository's tests.
It goes on with no earlier conversation: in another tree it would wait for ever.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.vitals import Doing
from coordinator.fleet.call_failure import CallFailure
from coordinator.fleet.driver import PROVIDER_VARIABLES, Launch, gateway_variables
from coordinator.fleet.json_line import digest, number, object_of, screen_line, subject, table, text
from coordinator.fleet.line_reader import LineReader, ToolCall

if TYPE_CHECKING:
    from coordinator.domain.attempt import Order
    from coordinator.fleet.driver import Reader

_PROVIDERS: Final = ("anthropic", "openai")
"""Known to the program itself; any other one that the model names is spoken to in OpenAI's chat protocol."""


class OpencodeDriver:
    """``command`` of the card is the program; arguments of yours stay before ours. The model is named ``provider/model``."""

    def launch(self, order: Order, *, python: str) -> Launch:
        if not order.home:
            raise ValueError("opencode needs a folder of its own, and the order names none")
        argv = tuple(python if word == "{python}" else word for word in order.command)
        model = (f"--model={order.model}",) if order.model else ()
        folder = f"{order.home}/{order.generation}"
        env = {"HOME": order.home, "TERM": "dumb"} | dict(order.env)
        env |= {
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_CLAUDE_CODE": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "XDG_CONFIG_HOME": f"{folder}/config",
            "XDG_DATA_HOME": f"{folder}/data",
            "XDG_STATE_HOME": f"{folder}/state",
        }
        if order.gateway:
            env |= gateway_variables(order) | {"OPENCODE_DISABLE_MODELS_FETCH": "1"}
        return Launch(
            argv=(*argv, "run", "--format", "json", *model),
            drop=PROVIDER_VARIABLES if order.gateway else (),
            env=env,
            files=((f"{order.generation}/config/opencode/opencode.json", _settings(order)),),
            transcript=True,
        )

    def reader(self, order: Order) -> Reader:
        return OpencodeReader(gateway=bool(order.gateway))


def _settings(order: Order) -> str:
    """What would be asked is refused: files outside of the tree. A card may say otherwise in ``OPENCODE_CONFIG_CONTENT``."""
    settings: dict[str, Any] = {
        "autoupdate": False,
        "permission": {"*": "allow", "external_directory": "deny"},
        "share": "disabled",
    }
    name, _, model = order.model.partition("/")
    providers: dict[str, dict[str, Any]] = {}
    if order.gateway:
        keys = {"anthropic": "{env:ANTHROPIC_API_KEY}", "openai": "{env:OPENAI_API_KEY}"}
        for one in _PROVIDERS:
            providers[one] = {"options": {"apiKey": keys[one], "baseURL": f"{order.gateway}/v1"}}
    if name and model:
        settings["model"] = settings["small_model"] = order.model
        provider = providers.setdefault(name, {})
        provider["models"] = {model: {}}
        if name not in _PROVIDERS:
            base = f"{order.gateway}/v1" if order.gateway else dict(order.env).get("OPENAI_BASE_URL", "")
            provider["npm"] = "@ai-sdk/openai-compatible"
            provider["options"] = {"apiKey": "{env:OPENAI_API_KEY}"} | ({"baseURL": base} if base else {})
    if providers:
        settings["provider"] = providers
    return json.dumps(settings, indent=2) + "\n"


_REFUSED: Final = ("rejected permission", "rule which prevents", "specified a rule")
_STILL: Final = "one step: its tools are told of when they are over"


class OpencodeReader(LineReader):
    """A tool is told of when it is over. From the beginning of a step to its end one may be in flight, so one is."""

    def __init__(self, *, gateway: bool) -> None:
        remedy = "the key of the model's provider (ANTHROPIC_API_KEY, OPENAI_API_KEY)"
        super().__init__(gateway=gateway, misused=r"^Unknown argument|^opencode run \[message", remedy=remedy)

    def feed(self, line: bytes) -> None:
        data = object_of(line) or {}
        part = table(data.get("part"))
        match data.get("type"):
            case "step_start":
                self.answered()
                self._turns += 1
                self.begin("step", ToolCall(note=_STILL, tool=""))
            case "tool_use":
                self._tool(part)
            case "text":
                self.say(text(part.get("text")))
            case "step_finish":
                self._step_finish(part)
            case "error":
                self.fail(_failure(table(data.get("error"))))

    def _tool(self, part: dict[str, Any]) -> None:
        state = table(part.get("state"))
        tool, given = screen_line(text(part.get("tool"))), table(state.get("input"))
        call = ToolCall(mark=digest(tool, given), note=screen_line(f"{tool} {subject(given)}"), tool=tool)
        error = text(state.get("error"))
        if state.get("status") == "error" and any(words in error for words in _REFUSED):
            self.refuse("tool", call)
        else:
            self.end("tool", [state.get("output"), error], call)

    def _step_finish(self, part: dict[str, Any]) -> None:
        self._cost_usd += number(part.get("cost"))
        self._in_flight.clear()
        if part.get("reason") in ("tool-calls", "unknown"):
            self.think()
        else:
            self.finish()
        if self._doing is Doing.FINISHED and part.get("reason") == "length":
            self.note("the answer was cut at its longest")


def _failure(error: dict[str, Any]) -> CallFailure:
    """The provider's own words are in the body of its answer."""
    given = table(error.get("data"))
    body = table((object_of(text(given.get("responseBody")).encode()) or {}).get("error"))
    headers = table(given.get("responseHeaders"))
    pause = text(headers.get("retry-after"))
    message = text(given.get("message")) or text(error.get("message")) or text(body.get("message"))
    kinds = (text(error.get("name")), text(body.get("code")), text(body.get("type")))
    return CallFailure(
        again_s=float(pause) if pause.isascii() and pause.isdecimal() and len(pause) < 8 else 0.0,
        kind=" ".join(kind for kind in kinds if kind not in ("", "APIError", "UnknownError")),
        message=message,
        status=int(number(given.get("statusCode"))),
    )

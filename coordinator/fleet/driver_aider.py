"""Role ``aider``: how aider is started without anybody at the keyboard, and what its text means.

Owns one invariant: its exit code is always 0, so an attempt went well only when a model answered and no failure came after
it. While our gateway runs, no ``.env`` of a repository decides where it calls; the rest of aider's own files it obeys.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from coordinator.domain.vitals import Doing
from coordinator.fleet.call_failure import failure_in
from coordinator.fleet.driver import PROVIDER_VARIABLES, Launch, gateway_variables
from coordinator.fleet.json_line import screen_line
from coordinator.fleet.line_reader import LineReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.attempt import Order
    from coordinator.fleet.driver import Ended, Reader, Said

_FIXED: Final = (
    "--yes-always",
    "--analytics-disable",
    "--disable-playwright",
    "--no-auto-test",
    "--no-check-update",
    "--no-detect-urls",
    "--no-fancy-input",
    "--no-gitignore",
    "--no-pretty",
    "--no-show-model-warnings",
    "--no-show-release-notes",
    "--no-stream",
    "--no-suggest-shell-commands",
)
_MAP: Final = "--map-tokens"
"""Its map of the repository is kept in the tree and would be handed in with the work, unless the repository ignores it."""
_WIDE: Final = "4000"
"""It breaks lines at the width of a terminal; what is broken cannot be understood."""


class AiderDriver:
    """``command`` of the card is the program; arguments of yours stay before ours. The model is named ``provider/model``."""

    def launch(self, order: Order, *, python: str) -> Launch:
        if not order.home:
            raise ValueError("aider needs a folder of its own, and the order names none")
        argv = tuple(python if word == "{python}" else word for word in order.command)
        mapped = any(word.partition("=")[0] == _MAP for word in argv)
        more = [f"--model={order.model}"] if order.model else []
        more += [] if mapped else [f"{_MAP}=0"]
        env = {"HOME": order.home, "TERM": "dumb"} | dict(order.env)
        env |= {"COLUMNS": _WIDE, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        files: tuple[tuple[str, str], ...] = ()
        if order.gateway:
            calls = _calls(order)
            env |= calls
            text = "".join(f"{name}={json.dumps(value)}\n" for name, value in calls.items())
            files = ((f"{order.generation}/aider.env", text),)
            more += [f"--env-file={order.home}/{order.generation}/aider.env"]
            more += [f"--openai-api-base={calls['OPENAI_API_BASE']}"]
            more += [f"--set-env=ANTHROPIC_API_BASE={calls['ANTHROPIC_API_BASE']}"]
        return Launch(
            argv=(*argv, *_FIXED, *_histories(order), *more, f"--message-file={order.brief}"),
            drop=(*PROVIDER_VARIABLES, "ANTHROPIC_API_BASE", "OPENAI_API_BASE") if order.gateway else (),
            env=env,
            files=files,
            stdin=b"",
            transcript=True,
        )

    def reader(self, order: Order) -> Reader:
        return AiderReader(gateway=bool(order.gateway))


def _calls(order: Order) -> dict[str, str]:
    """By the names that its library for models looks for."""
    more = {"ANTHROPIC_API_BASE": order.gateway, "OPENAI_API_BASE": f"{order.gateway}/v1"}
    return gateway_variables(order) | more


def _histories(order: Order) -> tuple[str, ...]:
    """They would lie in the tree and be handed in with the work."""
    kinds = (("--chat-history-file", "chat.md"), ("--input-history-file", "input"), ("--llm-history-file", "calls"))
    return tuple(f"{option}={order.home}/aider.{name}" for option, name in kinds)


_ERROR: Final = re.compile(r"litellm\.(?:\w+\.)*(\w*(?:Error|Exception|Exceeded)\w*): (.*)")
_STATUSES: Final[Mapping[str, int]] = {
    "APIConnectionError": 503,
    "AuthenticationError": 401,
    "BudgetExceededError": 402,
    "ContextWindowExceededError": 413,
    "InternalServerError": 500,
    "NotFoundError": 404,
    "PermissionDeniedError": 403,
    "RateLimitError": 429,
    "ServiceUnavailableError": 503,
    "Timeout": 503,
}
_TOKENS: Final = re.compile(r"Tokens: .*received\.(?: Cost: .*\$(\d{1,9}(?:\.\d{1,9})?) session)?")
_DONE: Final = re.compile(r"(Applied edit to|Commit [0-9a-f]{7,}) ")
_FULL: Final = re.compile(r"has hit a token limit|exceeds the .*token limit")
_PARTING: Final = 10
"""Edits and commits that the summary names."""


class AiderReader(LineReader):
    """It says nothing when it begins a call and nothing when it is done: all that is told is an answer and its effects."""

    def __init__(self, *, gateway: bool) -> None:
        remedy = "the key of the model's provider (ANTHROPIC_API_KEY, OPENAI_API_KEY)"
        super().__init__(gateway=gateway, misused=r"aider: error: ", remedy=remedy)
        self._effects: list[str] = []

    def feed(self, line: bytes) -> None:
        said = screen_line(line.decode(errors="replace"), 600)
        if not said:
            return
        if self._doing is Doing.STARTING and said.startswith("Aider v"):
            self.think(said)
            return
        error, tokens = _ERROR.match(said), _TOKENS.match(said)
        if error is not None:
            self.again(failure_in(error[2], status=_STATUSES.get(error[1], 0), kind=error[1]))
        elif tokens is not None:
            self.answered()
            self._turns += 1
            self._cost_usd = max(self._cost_usd, float(tokens[1] or 0.0))
        elif _FULL.search(said):
            self._failure = failure_in(said, status=413)
        elif _DONE.match(said):
            self._effects = [*self._effects, said][-_PARTING:]
            self.note(said)
        elif self._failure is None:
            self.say(said)

    def conclude(self, ended: Ended) -> Said:
        if self._failure is None and self._turns and ended.code in (0, None) and ended.signal is None:
            self._text = "; ".join(self._effects) or self._text
            self.finish()
        return super().conclude(ended)

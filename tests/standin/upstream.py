"""A server of Anthropic's shape that does what a line in the prompt says: ``UPSTREAM: STATUS key=value …`` or ``silence``.

``times`` limits how often (0: always), ``message`` is the error's text, everything else is a header of the answer
(``retry-after=90``). Without such a line each call is answered with a text. A session is known by its own header.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

from tests.real.upstream import Refuse, Say, Silence, Upstream

if TYPE_CHECKING:
    from tests.real.upstream import Call, Line

_WISH = re.compile(r"^\s*UPSTREAM: (.+)$", re.MULTILINE)


class PromptedUpstream(Upstream):
    """``calls`` are kept by session."""

    def __init__(self) -> None:
        super().__init__({"": [Say("Go on.")]})
        self._server.handle_error = _who_hung_up  # type: ignore[method-assign]

    def next_line(self, call: Call) -> tuple[int, Line]:
        session = call.headers.get("x-claude-code-session-id", "")
        with self._lock:
            self.calls[session].append(call)
            number = len(self.calls[session])
        prompt = call.body["messages"][0]["content"]
        wish = _WISH.search(prompt if isinstance(prompt, str) else json.dumps(prompt))
        return number, _line(shlex.split(wish[1]), number) if wish is not None else Say("Go on.")


def _line(words: list[str], number: int) -> Line:
    what, given = words[0], dict(word.split("=", 1) for word in words[1:])
    times = int(given.pop("times", "0"))
    if times and number > times:
        return Say("Go on.")
    if what == "silence":
        return Silence()
    return Refuse(int(what), given.pop("message", "refused by the script"), headers=given)


def _who_hung_up(request: object, client_address: object) -> None:
    """An agent that was killed in the middle of a call is no news."""

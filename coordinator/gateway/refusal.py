"""How the gateway itself says no, in the shape that Anthropic's clients read and OpenAI's understand as well.

Owns one invariant: what trying again cannot mend says so (``x-should-retry: false``), or a client asks for three minutes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coordinator.kit.http import Caller, Headers

NO_RETRY: Final = ("x-should-retry", "false")


class Refused(Exception):
    """No byte of an answer was sent. ``kind`` is the protocol's word; the message is one sentence for a person."""

    def __init__(self, status: int, kind: str, message: str, *, again: bool = False, more: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.again = again
        self.more = more


async def answer(caller: Caller, refused: Refused) -> None:
    """Raises ``ConnectionError`` when nobody is there to hear it."""
    error = {"type": "error", "error": {"type": refused.kind, "message": f"coordinator: {refused}"}}
    data = json.dumps(error).encode()
    headers = (("Content-Type", "application/json"), ("Content-Length", str(len(data))), *refused.more)
    await caller.start(refused.status, "", headers if refused.again else (*headers, NO_RETRY))
    await caller.send(data)

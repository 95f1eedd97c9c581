"""What an upstream's error says, to us and to the caller: unpacked to be understood, and without a key of ours.

Owns one invariant: an error is passed on byte for byte unless a key stands in it, and then without. Google repeats one in full
when it was suspended. What follows from an error is the ``courier``'s.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from coordinator.gateway.codings import inflated
from coordinator.gateway.dialect import LONGEST_WAIT_S
from coordinator.kit.wire import field

if TYPE_CHECKING:
    from coordinator.gateway.upstream import Upstream
    from coordinator.kit.wire import RawHeaders

ERROR_BYTES: Final = 1024 * 1024
"""Of an error's body at most."""
_READ_BYTES: Final = 4096
"""Of it, looked at: names of limits and pauses stand in the first kilobyte."""
_CODING: Final = b"content-encoding"
_MESSAGE: Final = re.compile(rb'"message"\s*:\s*("(?:[^"\\]|\\.)*")')
_SHOULD_RETRY: Final = b"x-should-retry"


def told_error(upstream: Upstream, headers: RawHeaders, body: bytes) -> tuple[RawHeaders, bytes, str]:
    """Headers and body as a caller may see them, and what they say, to be searched for words."""
    plain = inflated(body, field(headers, _CODING), ERROR_BYTES)
    hushed = upstream.hushed(plain)
    if hushed != plain:
        headers, body = tuple(pair for pair in headers if pair[0].lower() != _CODING), hushed
    return headers, body, hushed[:_READ_BYTES].decode("utf-8", "replace")


def said_within(upstream: Upstream, event: bytes) -> str:
    """``: `` and the message of an error that came as an event of a stream; empty when it has none."""
    found = _MESSAGE.search(upstream.hushed(event)[:_READ_BYTES])
    if found is None:
        return ""
    try:
        return f": {json.loads(found[1])}"
    except ValueError:
        return ""


def told_pause(headers: RawHeaders, after_s: float, *, final: bool) -> RawHeaders:
    """The fields, with one that stops the caller's client where trying again is of no use: ``final``, or the pause is longer than
    clients bear. Told of such a pause alone, some take a short one of their own; and an agent that ends now is free for other
    work until the limit is over."""
    if not final and after_s <= LONGEST_WAIT_S:
        return headers
    return (*(pair for pair in headers if pair[0].lower() != _SHOULD_RETRY), (_SHOULD_RETRY, b"false"))


def refuses_key(status: int, said: str) -> bool:
    """Whether it is about the key; Google answers 400 to one that it does not know."""
    return status in (401, 403) or (status == 400 and "API_KEY_INVALID" in said)

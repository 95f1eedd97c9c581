"""The door to the relay lane's wire: llhttp's parsers, the loop they run on, and the words that both ends of it share.

Owns one invariant: what is a message and where it ends is decided by llhttp in its strict mode alone, here and nowhere
else. Connections are ``wire_server``'s and ``wire_client``'s; pages and small talk stand on a framework (``kit.http``).
Frameworks and client libraries cost ten times what a relayed call may; that is why this lane has a wire of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httptools
import uvloop

if TYPE_CHECKING:
    import asyncio

RawHeaders = tuple[tuple[bytes, bytes], ...]
"""Names as they were sent, in their order, repeated ones included."""

RequestParser = httptools.HttpRequestParser
ResponseParser = httptools.HttpResponseParser
WireError = httptools.HttpParserError
"""What came in is no HTTP/1.1 as RFC 9112 has it."""
WireUpgrade = httptools.HttpParserUpgrade

HEAD_BYTES: Final = 64 * 1024
"""All of a head at most: request line or status line, and fields."""
FIELDS: Final = 200
"""Fields of a head at most."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that speak of one connection (RFC 9110 section 7.6.1), beside those that ``Connection`` itself names."""


class AnswerCut(Exception):
    """The other end broke off in the middle of its answer."""


class NotReached(Exception):
    """No byte of an answer came; the text says why. ``sent``: the request may have been received, or worked on."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that this lane is meant to run on (libuv's)."""
    return uvloop.new_event_loop()


def field(headers: RawHeaders, name: bytes) -> bytes:
    """The first value of that name (given in lower case), or empty."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return b""

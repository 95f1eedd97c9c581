"""The relay lane's way out: an upstream, the connections that are kept to it, and requests that go over them unchanged.

Owns one invariant: nothing is sent twice unless no byte of an answer came and the connection was an old one that broke at
once, and then on a fresh one. A connection is given out again only when its answer was clean (``wire_upstream`` says so).
It knows no path, no key and no meaning of a status, and no deadline but the one for connecting: callers cancel.
"""

from __future__ import annotations

import asyncio
import functools
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from coordinator.kit.wire import HOP_BY_HOP, NotReached
from coordinator.kit.wire_answer import Answer
from coordinator.kit.wire_dial import WireDial
from coordinator.kit.wire_upstream import UpstreamConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Answer", "Origin", "RequestLines", "proxy_for"]

_AT_ONCE_S: Final = 0.25
"""A kept connection that the other end had closed shows it within a round trip."""
_OURS: Final = HOP_BY_HOP | {b"content-length", b"host"}
_NAMED_IN_VAIN: Final = _OURS | {b"", b"close"}
"""What a Connection field may name without a field of that name being left to drop."""
_WITH_BODY: Final = frozenset({b"PATCH", b"POST", b"PUT"})
"""Methods that say Content-Length: 0 when there is no body (RFC 9110 section 8.6)."""
_TARGET: Final = re.compile(rb"/[!-~\x80-\xff]*")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class RequestLines:
    """The head of a request but for its length. ``bare``: its answer has no body."""

    __slots__ = ("_fields", "_measured", "_opening", "bare", "method", "target")

    def __init__(self, method: bytes, target: bytes, opening: bytes, fields: bytes) -> None:
        self._fields = fields
        self._opening = opening
        self._measured = method in _WITH_BODY
        self.bare = method == b"HEAD"
        self.method = method
        self.target = target

    def of(self, length: int) -> bytes:
        """With the length of a body."""
        if length or self._measured:
            return b"%bContent-Length: %d\r\n%b\r\n" % (self._opening, length, self._fields)
        return b"%b%b\r\n" % (self._opening, self._fields)


class Origin:
    """One ``http(s)://host[:port]``, by way of ``proxy`` (``http://[user:password@]host[:port]``) if there is one.

    ``ca_file`` (PEM) stands in for the certificates that the machine trusts. At most ``kept`` connections are kept, for
    ``idle_s`` at most. Raises ``ValueError`` for an address that is none. Made anywhere, used on one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        proxy: str = "",
        ca_file: str = "",
        connect_s: float = 10.0,
        kept: int = 256,
        idle_s: float = 30.0,
    ) -> None:
        self._dial = WireDial(url, proxy=proxy, ca_file=ca_file, connect_s=connect_s)
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None
        self._idle: list[UpstreamConnection] = []
        self._idle_s = idle_s
        self._kept = kept
        self._open: set[UpstreamConnection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def ask(self, head: RequestLines, body: bytes) -> Answer:
        """Send a request and return the head of its answer. Raises ``NotReached``. Being cancelled closes the connection at
        once."""
        lines = head.of(len(body))
        connection = self._kept_one()
        if connection is not None:
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                return await _asked(connection, lines, body, head.bare)
            except NotReached:
                if connection.heard or loop.time() - began > _AT_ONCE_S:
                    raise
        return await _asked(await self._fresh(), lines, body, head.bare)

    async def close(self) -> None:
        """Close every connection, those in use as well. Returns when they are closed."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    def head(self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> RequestLines:
        """The head of a request, to be sent once or again and again. Host and Content-Length are ours; fields that speak of
        one connection are left out. Raises ``ValueError`` for what would not be one request."""
        dial = self._dial
        if not _is_token(method) or method == b"CONNECT" or not _TARGET.fullmatch(target):
            raise ValueError("a method or a target that cannot stand in a request")
        opening = b"%b %b%b HTTP/1.1\r\nHost: %b\r\n" % (method, dial.before_target, target, dial.authority)
        parts: list[bytes] = []
        if dial.credentials:
            parts.append(b"Proxy-Authorization: %b\r\n" % dial.credentials)
        lines = len(parts) + 2  # of which the opening has two
        named = b""
        headers = tuple(headers)
        for name, value in headers:
            if _passes(name):
                parts += (name, b": ", value, b"\r\n")
                lines += 1
            elif name.lower() == b"connection":
                named += b"," + value.lower()
        if named:
            dropped = {token.strip() for token in named.split(b",")} - _NAMED_IN_VAIN
            if dropped:
                left = [(name, value) for name, value in headers if name.lower() not in dropped | {b"connection"}]
                return self.head(method, target, left)
        fields = b"".join(parts)
        head = opening + fields
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise ValueError("a header field with a line break or a NUL in it")
        return RequestLines(method, target, opening, fields)

    def _kept_one(self) -> UpstreamConnection | None:
        """The connection that was used last: the others grow old and are closed."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.ready and asyncio.get_running_loop().time() - connection.idle_since < self._idle_s:
                return connection
            connection.abort()
        return None

    async def _fresh(self) -> UpstreamConnection:
        connection = UpstreamConnection(self._over, self._lost)
        if not self._closed:
            await self._dial.open(connection)
        if self._closed:
            connection.abort()
            raise NotReached("this upstream is not used any more", sent=False)
        self._open.add(connection)
        return connection

    def _over(self, connection: UpstreamConnection, keep: bool) -> None:
        if not connection.idle_since:  # its first answer: a session's tickets have come by now
            self._dial.remember(connection.tls_session())
        if not keep or self._closed or len(self._idle) >= self._kept:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self._idle_s, self._swept)

    def _lost(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)

    def _swept(self) -> None:
        """One timer for all: whoever became free first stands first."""
        loop = asyncio.get_running_loop()
        before = loop.time() - self._idle_s
        old = [connection for connection in self._idle if connection.idle_since <= before]
        for connection in old:
            connection.abort()
        del self._idle[: len(old)]
        self._sweep = loop.call_at(self._idle[0].idle_since + self._idle_s, self._swept) if self._idle else None


def proxy_for(url: str, environment: Mapping[str, str]) -> str:
    """The proxy that ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` name for ``url``, or empty. The lower-case name wins.

    ``NO_PROXY`` is a list of hosts, each with a port or without; one stands for all names that end in it. ``*`` is every host.
    """
    parts = urlsplit(url)

    def named(name: str) -> str:
        return (environment.get(name, "") or environment.get(name.upper(), "")).strip()

    proxy = named(f"{parts.scheme}_proxy")
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    for entry in named("no_proxy").lower().replace(" ", ",").split(","):
        without = entry.removesuffix(f":{port}") if entry.count(":") == 1 or "]" in entry else entry
        suffix = without.strip("[]").removeprefix("*").lstrip(".")
        if entry == "*" or (suffix and (host == suffix or host.endswith(f".{suffix}"))):
            return ""
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


async def _asked(connection: UpstreamConnection, head: bytes, body: bytes, bare: bool) -> Answer:
    answer = connection.ask(head, body, bare=bare)
    try:
        return await answer
    except NotReached:
        raise
    except BaseException:
        # The answer may have come, and even be whole, in the moment in which its caller was cancelled: then the connection is
        # another's by now.
        if answer.done() and not answer.cancelled():
            answer.result().close()
        else:
            connection.abort()
        raise
    finally:
        del answer  # it has the error that has this frame: a circle that only the collector of garbage would find


@functools.lru_cache(maxsize=1024)
def _is_token(text: bytes) -> bool:
    return _TOKEN.fullmatch(text) is not None


@functools.lru_cache(maxsize=1024)
def _passes(name: bytes) -> bool:
    """Whether a field goes up. Raises ``ValueError`` for what is no name of a field."""
    if not _is_token(name):
        raise ValueError("a header field with a name that is none")
    return name.lower() not in _OURS

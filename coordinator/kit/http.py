"""The one door to an HTTP framework (aiohttp): it answers requests on connections that were accepted elsewhere.

Owns one invariant: a connection answers one request and is closed, so that whoever gave it away gets the next one; and when a
client hangs up, whatever answers it is cancelled at once. Model calls never come here; they have a wire of their own
(``kit.wire``).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp import web

_log = logging.getLogger(__name__)

BODY_BYTES: Final = 4 * 1024 * 1024
BODY_S: Final = 30.0
"""A body that takes longer is nobody's."""
TAKEN_S: Final = 30.0
"""What a client has to take the last of an answer."""

_GO_AHEAD: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyTooLarge(Exception):
    """A request has more than ``BODY_BYTES``."""


class BodyUnreadable(Exception):
    """It is cut off, or not coded as its head says."""


class PageExchange:
    """One request and its answer: ``reply`` once, or ``start`` and then ``send`` until it is all. What writes waits while the
    client takes nothing, and raises ``ConnectionError`` when it is gone.

    ``target`` is as it was sent, ``path`` what is left of it without its query.
    """

    __slots__ = ("_request", "method", "path", "response", "sent_bytes", "target")

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None
        self.method = request.method
        self.path = request.path
        self.sent_bytes = 0
        """Of the answer's body."""
        self.target = request.raw_path.encode("utf-8", "surrogateescape")

    def header(self, name: bytes) -> bytes:
        """The first value of that name, or empty."""
        value: str = self._request.headers.get(name.decode("latin-1"), "")
        return value.encode("utf-8", "surrogateescape")

    async def body(self) -> bytes:
        """All of it. Raises ``BodyTooLarge``, ``BodyUnreadable``, and ``TimeoutError`` when it does not come."""
        from aiohttp import web

        pieces: list[bytes] = []
        room = BODY_BYTES
        async with asyncio.timeout(BODY_S):
            if self.header(b"expect").lower() == b"100-continue":
                await self._request.writer.write(_GO_AHEAD)
                self._request.writer.output_size = 0  # nothing of the answer yet
            try:
                while piece := await self._request.content.readany():
                    room -= len(piece)
                    if room < 0:
                        raise BodyTooLarge
                    pieces.append(piece)
            except web.RequestPayloadError as error:
                raise BodyUnreadable(str(error)) from error
        return b"".join(pieces)

    @property
    def started(self) -> bool:
        """Whether an answer has begun."""
        return self.response is not None

    async def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """A whole answer."""
        from aiohttp import web

        await self._begin(web.Response(status=status, body=body), headers)
        self.sent_bytes = len(body)
        await self._end()

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin an answer of which nobody knows how long it will be."""
        from aiohttp import web

        await self._begin(web.StreamResponse(status=status), headers)

    async def send(self, data: bytes) -> None:
        """More of it, at once."""
        assert self.response is not None  # start
        self.sent_bytes += len(data)
        await self.response.write(data)

    def cut(self) -> None:
        """Hang up at once; what waits to be taken is lost."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def finish(self) -> web.StreamResponse:
        """The end; safe to call twice. One that was never begun is a fault of ours. Raises ``TimeoutError`` when the client does
        not take it."""
        if self.response is None:
            await self.reply(500, (), b"")
        async with asyncio.timeout(TAKEN_S):
            return await self._end()

    async def _begin(self, response: web.StreamResponse, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.response = response
        for name, value in headers:
            response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        response.force_close()
        await response.prepare(self._request)

    async def _end(self) -> web.StreamResponse:
        assert self.response is not None  # finish
        await self.response.write_eof()
        return self.response


class PageServer:
    """Calls ``answer`` for each request, in a task of its own. ``open`` before the first connection."""

    def __init__(self, answer: Callable[[PageExchange], Awaitable[None]]) -> None:
        self._answer = answer
        self._server: Any = None

    async def open(self) -> None:
        await asyncio.to_thread(_load)  # 0.2 s, for who has a gateway only
        from aiohttp import web

        self._server = web.Server(self._serve, access_log=None, handler_cancellation=True, logger=_log)

    def protocol(self) -> asyncio.Protocol:
        """For a connection that is this server's from now on."""
        protocol: asyncio.Protocol = self._server()
        return protocol

    async def close(self) -> None:
        if self._server is not None:
            await self._server.shutdown(0.5)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        exchange = PageExchange(request)
        try:
            await self._answer(exchange)
            return await exchange.finish()
        except asyncio.CancelledError:
            exchange.cut()  # the framework would wait for the client to take what is left
            raise
        except TimeoutError:
            exchange.cut()
            return exchange.response or web.Response()
        except ConnectionError:  # nobody is there to get it
            return exchange.response or web.Response()


def _load() -> None:
    import aiohttp.web  # noqa: F401

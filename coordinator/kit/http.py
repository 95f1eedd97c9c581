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


class BodyTooLarge(Exception):
    """A request has more than ``BODY_BYTES``."""


class PageExchange:
    """One request and its answer: ``reply`` once, or ``start`` and then ``send`` until it is all. What writes waits while the
    client takes nothing, and raises ``ConnectionError`` when it is gone.

    ``target`` is as it was sent, ``path`` what is left of it without its query.
    """

    __slots__ = ("_request", "_response", "method", "path", "sent_bytes", "target")

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None
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
        """All of it. Raises ``BodyTooLarge``, and ``TimeoutError`` when it does not come."""
        pieces: list[bytes] = []
        room = BODY_BYTES
        async with asyncio.timeout(BODY_S):
            while piece := await self._request.content.readany():
                room -= len(piece)
                if room < 0:
                    raise BodyTooLarge
                pieces.append(piece)
        return b"".join(pieces)

    @property
    def started(self) -> bool:
        """Whether an answer has begun."""
        return self._response is not None

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
        assert self._response is not None  # start
        self.sent_bytes += len(data)
        await self._response.write(data)

    async def finish(self) -> web.StreamResponse:
        """The end; safe to call twice. One that was never begun is a fault of ours."""
        if self._response is None:
            await self.reply(500, (), b"")
        return await self._end()

    async def _begin(self, response: web.StreamResponse, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._response = response
        for name, value in headers:
            response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        response.force_close()
        await response.prepare(self._request)

    async def _end(self) -> web.StreamResponse:
        assert self._response is not None  # finish
        await self._response.write_eof()
        return self._response


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
        exchange = PageExchange(request)
        await self._answer(exchange)
        return await exchange.finish()


def _load() -> None:
    import aiohttp.web  # noqa: F401

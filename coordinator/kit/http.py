"""The one door to an HTTP library (aiohttp): a server on a socket that listens already, and a client that streams.

Owns one invariant: bodies pass unchanged and unhoarded. Nothing is decoded, followed or gathered on the way, whoever is
slow holds the other end, and whoever hangs up ends the call. It knows no path, no key and no meaning of a status.
"""

from __future__ import annotations

import asyncio
import io
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp import ClientResponse, ClientSession, TCPConnector, web

Headers = tuple[tuple[str, str], ...]
"""Names as they were sent, in their order, repeated ones included."""

_log = logging.getLogger(__name__)

_CONNECT_S: Final = 10.0
_FIELD_BYTES: Final = 64 * 1024
_LINE_BYTES: Final = 16 * 1024
_LAST_WORDS_S: Final = 0.5
"""Time that handlers have to end, once they were told to, before their connections are closed."""
_AT_ONCE_S: Final = 0.25
"""A kept connection that the other end had closed shows it within a round trip."""


class AnswerCut(Exception):
    """The other end broke off in the middle of its answer."""


class NotReached(Exception):
    """No byte of an answer came; the text says why."""


def _load() -> None:
    import aiohttp.web  # noqa: F401 - 0.2 s, in a thread and only for who has a gateway


class Caller:
    """One request of a client, and the way to answer it. Its handler is cancelled when the client hangs up."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None
        self.headers = _decoded(request.raw_headers)
        self.method = request.method
        self.target = request.raw_path

    @property
    def started(self) -> bool:
        """Whether an answer has begun."""
        return self._response is not None

    def header(self, name: str) -> str:
        """The first value of that name (lower case), or empty."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ``ConnectionError`` when it ends before its end."""
        from aiohttp import HttpVersion11, web

        if self._request.version >= HttpVersion11 and self.header("expect").lower() == "100-continue":
            await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            while chunk := await self._request.content.readany():
                yield chunk
        except web.RequestPayloadError as error:
            raise ConnectionResetError("the request broke off") from error

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """Send the head at once. Raises ``ConnectionError`` when nobody is there."""
        from aiohttp import web

        self._response = response = web.StreamResponse(status=status, reason=reason)
        for name, value in headers:
            response.headers.add(name, value)
        await response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises ``ConnectionError`` when nobody is there."""
        assert self._response is not None  # started
        await self._response.write(data)

    def cut(self) -> None:
        """Hang up, so that the client sees an answer that is not whole; what was sent before still reaches it."""
        if self._request.transport is not None:
            self._request.transport.close()

    def response(self) -> web.StreamResponse:
        from aiohttp import web

        return self._response or web.Response(status=500)


class HttpServer:
    """Calls ``handle`` for each request, in a task of its own."""

    def __init__(self, handle: Callable[[Caller], Awaitable[None]]) -> None:
        self._handle = handle
        self._runner: web.ServerRunner | None = None
        self._site: web.SockSite | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve on ``listener``, which is the server's from now on."""
        try:
            await asyncio.to_thread(_load)
            from aiohttp import web

            server = web.Server(
                self._serve,
                handler_cancellation=True,
                access_log=None,
                auto_decompress=False,
                logger=_log,
                max_field_size=_FIELD_BYTES,
                max_line_size=_LINE_BYTES,
            )
            self._runner = web.ServerRunner(server, shutdown_timeout=_LAST_WORDS_S)
            await self._runner.setup()
            self._site = web.SockSite(self._runner, listener)
            await self._site.start()
        except BaseException:
            listener.close()
            raise

    async def refuse_new(self) -> None:
        """Take no further connections; those that are open go on."""
        site, self._site = self._site, None
        if site is not None:
            await site.stop()

    async def stop(self) -> None:
        """Close every connection."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        caller = Caller(request)
        with suppress(ConnectionError):  # the client has hung up
            await self._handle(caller)
        return caller.response()


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; ``body`` gives the rest as it comes, raising ``AnswerCut`` when it is not whole."""

    status: int
    reason: str
    headers: Headers
    body: AsyncIterator[bytes]


class HttpClient:
    """Keeps connections; obeys ``HTTPS_PROXY`` and ``NO_PROXY``, follows no redirect, keeps no cookie, reads no netrc."""

    def __init__(self) -> None:
        self._kept: ClientSession | None = None
        self._fresh: ClientSession | None = None

    async def open(self) -> None:
        await asyncio.to_thread(_load)
        import aiohttp

        self._kept = _session(aiohttp.TCPConnector(limit=0, ttl_dns_cache=60))
        self._fresh = _session(aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, force_close=True))

    async def close(self) -> None:
        sessions = self._kept, self._fresh
        self._kept = self._fresh = None
        for session in sessions:
            if session is not None:
                await session.close()

    @asynccontextmanager
    async def send(self, method: str, url: str, headers: Headers, body: bytes) -> AsyncIterator[Answer]:
        """Raises ``NotReached``. Leaving before the answer's end hangs up."""
        response = await self._ask(method, url, headers, body)
        del body  # it may be large, and the answer may take its time
        try:
            yield Answer(
                status=response.status,
                reason=response.reason or "",
                headers=_decoded(response.raw_headers),
                body=_chunks(response),
            )
        finally:
            response.close()  # a connection whose answer was read to its end has gone back to the pool before

    async def _ask(self, method: str, url: str, headers: Headers, body: bytes) -> ClientResponse:
        """A kept connection that the other end had closed is no fault of anybody's: it is sent once more, on a fresh one. That
        shows at once; what breaks off later may have been worked on, and paid for, and is not sent again."""
        import aiohttp

        assert self._kept is not None  # open
        assert self._fresh is not None
        seen, began = SimpleNamespace(reused=False), asyncio.get_running_loop().time()
        try:
            return await _request(self._kept, method, url, headers, body, seen)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            gone = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            at_once = asyncio.get_running_loop().time() - began < _AT_ONCE_S
            if not (gone and at_once and seen.reused):
                raise NotReached(_why(error)) from error
        try:
            return await _request(self._fresh, method, url, headers, body, seen)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotReached(_why(error)) from error


def _session(connector: TCPConnector) -> ClientSession:
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        auto_decompress=False,
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_field_size=_FIELD_BYTES,
        max_line_size=_LINE_BYTES,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, connect=2 * _CONNECT_S),
        trace_configs=[trace],
    )


async def _request(
    session: ClientSession, method: str, url: str, headers: Headers, body: bytes, seen: SimpleNamespace
) -> ClientResponse:
    return await session.request(
        method,
        url,
        allow_redirects=False,
        data=io.BytesIO(body) if body or method == "POST" else None,
        headers=headers,
        proxy=_proxy_for(url),
        trace_request_ctx=seen,
    )


async def _note_reuse(_: ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.reused = True


async def _chunks(response: ClientResponse) -> AsyncIterator[bytes]:
    import aiohttp

    try:
        while chunk := await response.content.readany():
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise AnswerCut(_why(error)) from error


def _decoded(raw: tuple[tuple[bytes, bytes], ...]) -> Headers:
    return tuple((name.decode(errors="replace"), value.decode(errors="replace")) for name, value in raw)


def _proxy_for(url: str) -> str | None:
    """What the environment says. The session is not told to read it, because then it reads netrc as well."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies_environment, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies_environment()
    if not proxies or proxy_bypass(parts.netloc):
        return None
    return proxies.get(parts.scheme)


def _why(error: Exception) -> str:
    """The system's own words where there are some; never a URL, which may have somebody's name and password in it."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return "it takes too long to connect" if isinstance(error, TimeoutError) else type(error).__name__

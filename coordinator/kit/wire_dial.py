"""How a connection to one upstream is opened: its addresses in turn, through a proxy or not, with TLS or not.

Owns one invariant: what fails here fails before anything of a request was written, so it may be tried elsewhere; the reason is
given in the system's own words, never with an address, a user's name or a password. What is said over the connection
afterwards is ``wire_upstream``'s.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from coordinator.kit.wire import HEAD_BYTES, NotReached, ResponseParser, WireError, WireUpgrade

if TYPE_CHECKING:
    from coordinator.kit.wire_upstream import UpstreamConnection

_PORTS: Final = (("http", 80), ("https", 443))


class WireDial:
    """Where an upstream is and how one gets there. ``url`` is ``http(s)://host[:port]``, ``proxy`` is empty or
    ``http://[user:password@]host[:port]``. Raises ``ValueError``, without the URL in it, when they are not.

    ``authority`` is the Host field; ``before_target`` stands before each target (a proxy wants all of the URL);
    ``credentials`` is the value of Proxy-Authorization for requests that a proxy sees, or empty.
    """

    def __init__(self, url: str, *, proxy: str, ca_file: str, connect_s: float) -> None:
        parts = _split(url)
        if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("an upstream is given as http(s)://host[:port], and nothing more")
        self._host, self._port = _place(parts)
        self._secure = parts.scheme == "https"
        self._near = (self._host, self._port)
        self._proxied = bool(proxy)
        self._ca_file = ca_file
        self._connect_s = connect_s
        self._context: _ResumingContext | None = None
        self._making = asyncio.Lock()
        literal = f"[{self._host}]" if ":" in self._host else self._host
        self._far = f"{literal}:{self._port}".encode()
        self.authority = self._far if (parts.scheme, self._port) not in _PORTS else literal.encode()
        self.before_target = b""
        self.credentials = b""
        self._proxy_credentials = b""
        if proxy:
            way = _split(proxy)
            if way.scheme != "http":
                raise ValueError("a proxy is given as http://[user:password@]host[:port]")
            self._near = _place(way)
            self._proxy_credentials = _basic(way)
            if not self._secure:
                self.before_target = b"http://" + self.authority
                self.credentials = self._proxy_credentials

    async def open(self, connection: UpstreamConnection) -> None:
        """Open ``connection``. Raises ``NotReached``, with ``sent`` false."""
        try:
            async with asyncio.timeout(self._connect_s):
                await self._open(connection)
        except OSError as error:  # TLS and DNS failures and time-outs are among them
            raise NotReached(_why(error), sent=False) from error

    def remember(self, session: object) -> None:
        """Shorten the next handshake with ``session``, if there is one."""
        if self._context is not None and isinstance(session, ssl.SSLSession):
            self._context.session = session

    async def _open(self, connection: UpstreamConnection) -> None:
        context = await self._tls_context() if self._secure else None
        loop = asyncio.get_running_loop()
        raw, tunnel = await self._reach()
        try:
            if context is not None and self._proxied:
                await self._pass_proxy(raw, tunnel)
            if tunnel.astray:
                raise ConnectionResetError(0, "something was said that nobody asked for")
            if raw.is_closing():
                raise ConnectionResetError
            if context is None:
                raw.set_protocol(connection)
                connection.attach(raw, raw)
                return
            tls = await loop.start_tls(raw, connection, context, server_hostname=self._host)
            if tls is None or raw.is_closing():
                raise ConnectionResetError
            # Held means held at the socket as well: what ends while it is held would else be lost on its way through TLS.
            tls.set_read_buffer_limits(high=1)  # type: ignore[attr-defined]
            connection.attach(tls, raw)
        except BaseException:
            raw.abort()
            raise

    async def _reach(self) -> tuple[asyncio.Transport, _Tunnel]:
        """A socket to the first address that takes it; each has its share of the time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._connect_s
        found = await loop.getaddrinfo(*self._near, type=socket.SOCK_STREAM)
        failure = OSError("no address was found for it")
        for left, (*_, address) in zip(range(len(found), 0, -1), found, strict=True):
            try:
                async with asyncio.timeout((until - loop.time()) / left):
                    return await loop.create_connection(_Tunnel, str(address[0]), self._near[1])
            except OSError as error:
                failure = error
        raise failure

    async def _pass_proxy(self, raw: asyncio.Transport, tunnel: _Tunnel) -> None:
        """Ask the proxy for a way through."""
        lines = [b"CONNECT " + self._far + b" HTTP/1.1", b"Host: " + self._far]
        if self._proxy_credentials:
            lines.append(b"Proxy-Authorization: " + self._proxy_credentials)
        answer = tunnel.expect()
        raw.write(b"\r\n".join([*lines, b"", b""]))
        status = await answer
        if not 200 <= status < 300:
            raise ConnectionRefusedError(0, f"the proxy answered {status}")

    async def _tls_context(self) -> _ResumingContext:
        """Read in a thread: a machine's bundle of certificates takes tens of milliseconds."""
        async with self._making:
            if self._context is None:
                self._context = await asyncio.to_thread(_trusting, self._ca_file)
            return self._context


class _ResumingContext(ssl.SSLContext):
    """Gives each new connection the session of the last one: neither asyncio nor uvloop has an argument for it."""

    session: ssl.SSLSession | None = None

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or self.session)


class _Tunnel(asyncio.Protocol):
    """What a socket speaks until it is a connection to the upstream: at most it listens to what a proxy answers."""

    def __init__(self) -> None:
        self._heard_bytes = 0
        self._parser = ResponseParser(self)
        self._status: asyncio.Future[int] | None = None
        self.astray = False
        """Something was said that nobody asked for."""

    def expect(self) -> asyncio.Future[int]:
        """The status of the answer that is to come. Raises ``ConnectionError`` when none does."""
        self._status = asyncio.get_running_loop().create_future()
        return self._status

    def data_received(self, data: bytes) -> None:
        self._heard_bytes += len(data)
        status = self._status
        try:
            self.astray = status is None or status.done() or self._heard_bytes > HEAD_BYTES
            if not self.astray:
                self._parser.feed_data(data)
        except (WireError, WireUpgrade):
            self.astray = True
        if self.astray:
            self._fail("the proxy speaks no HTTP/1.1")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail((isinstance(exc, OSError) and exc.strerror) or "the connection was closed")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._status is not None and not self._status.done() and status >= 200:
            self._status.set_result(status)

    def on_body(self, _: bytes) -> None:
        self.astray = True

    def _fail(self, why: str) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_exception(ConnectionResetError(0, why))


def _trusting(ca_file: str) -> _ResumingContext:
    """``ssl.create_default_context``, of our class. Certificate and host name are checked; ``SSL_CERT_FILE`` is obeyed."""
    context = _ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs()
    return context


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in dict(_PORTS) or not parts.hostname:
        raise ValueError("an address is given as http(s)://host[:port]")
    return parts


def _place(parts: SplitResult) -> tuple[str, int]:
    """Host (ASCII, without brackets) and port."""
    try:
        return (parts.hostname or "").encode("idna").decode(), parts.port or dict(_PORTS)[parts.scheme]
    except ValueError:
        raise ValueError("an address has a host or a port that cannot be one") from None


def _basic(parts: SplitResult) -> bytes:
    if parts.username is None:
        return b""
    pair = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
    return b"Basic " + base64.b64encode(pair)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'no reason was given'}".replace("_", " ")
    if isinstance(error, socket.gaierror):
        return error.strerror or "its name was not found"
    if error.errno:
        return os.strerror(error.errno)
    if error.strerror:
        return error.strerror
    return "it takes too long to connect" if isinstance(error, TimeoutError) else "the connection was closed"

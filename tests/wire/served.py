"""For the server's tests: a server on a real socket, a handler that remembers, and a client that says the bytes it is given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

from coordinator.kit.wire_server import Exchange, HandOver, WireServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

PATIENCE_S = 10.0
"""For what comes at once when it comes at all."""
ALLOWED = 1 << 20

Meaning = tuple[bytes, bytes, bytes]
"""Method, target and body of a request."""


@dataclass(frozen=True)
class Got:
    """An answer as a client understands it (h11 does). ``cut``: it is not whole."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False
    interim: list[int] = field(default_factory=list)


class Remembering:
    """Answers everything with 200 and the request's body, unless it is told otherwise."""

    def __init__(
        self,
        serve: Callable[[Exchange], Awaitable[None]] | None = None,
        admit: Callable[[Exchange], int | HandOver] | None = None,
        refuse: Callable[[Exchange, int, str], None] | None = None,
    ) -> None:
        self._admit = admit
        self._refuse = refuse
        self._serve = serve
        self.exchanges: list[Exchange] = []
        self.seen: list[Meaning] = []
        """What was served."""

    def admit(self, exchange: Exchange) -> int | HandOver:
        self.exchanges.append(exchange)
        return ALLOWED if self._admit is None else self._admit(exchange)

    def refuse(self, exchange: Exchange, status: int, why: str) -> None:
        if self._refuse is not None:
            self._refuse(exchange, status, why)

    async def serve(self, exchange: Exchange) -> None:
        self.seen.append((exchange.method, exchange.target, exchange.body))
        if self._serve is None:
            exchange.reply(200, ((b"Content-Type", b"application/octet-stream"),), exchange.body)
        else:
            await self._serve(exchange)


class Caller:
    """One connection, seen from the client's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._read = b""
        self.ended = False
        """The server closed its side (or reset the connection)."""
        self.reset = False
        self.socket = connection

    async def say(self, data: bytes) -> None:
        """Does not mind a server that has hung up."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def hear(self, size: int = 65536) -> bytes:
        """What comes next, or nothing at the end."""
        data = b""
        if not self.ended:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    data = await asyncio.get_running_loop().sock_recv(self.socket, size)
            except ConnectionError:
                self.reset = True
            self.ended = not data
        return data

    async def hear_out(self) -> bytes:
        """All that comes until the server closes."""
        heard, self._read = self._read, b""
        while not self.ended:
            heard += await self.hear()
        return heard

    async def answer(self, method: str = "GET") -> Got | None:
        """The next answer, or None when there is none. What is no HTTP/1.1 fails."""
        talk = h11.Connection(h11.CLIENT)
        talk.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        talk.send(h11.EndOfMessage())
        if self._read:
            talk.receive_data(self._read)
        head, body, interim = None, b"", []
        while True:
            try:
                event = talk.next_event()
            except h11.RemoteProtocolError:
                if not self.ended:
                    raise
                self._read = b""
                return None if head is None else _got(head, body, interim, cut=True)
            if event is h11.NEED_DATA:
                talk.receive_data(await self.hear())
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._read = talk.trailing_data[0]
                return None if head is None else _got(head, body, interim, cut=self.reset)
            else:
                return None

    async def answers(self, *methods: str) -> list[Got]:
        """One after the other, until there is none."""
        found: list[Got] = []
        while (got := await self.answer(methods[len(found)] if len(found) < len(methods) else "GET")) is not None:
            found.append(got)
        return found

    def shut(self) -> None:
        """Say no more, but go on reading."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def break_off(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def _got(head: h11.Response, body: bytes, interim: list[int], *, cut: bool) -> Got:
    fields = {name.decode(): value.decode() for name, value in head.headers}
    return Got(status=head.status_code, headers=fields, body=body, cut=cut, interim=interim)


@dataclass
class Served:
    """A server at work."""

    server: WireServer
    address: tuple[str, int]

    @property
    def connections(self) -> int:
        return len(self.server._open)

    @contextlib.asynccontextmanager
    async def caller(self, *, receive_bytes: int = 0) -> AsyncIterator[Caller]:
        with socket.socket() as connection:
            if receive_bytes:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, self.address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Caller(connection)

    async def ask(self, *pieces: bytes, methods: Sequence[str] = ()) -> list[Got]:
        """Say the pieces, each as the server's next read, and give all answers until it closes."""
        async with self.caller() as caller:
            for piece in pieces:
                await caller.say(piece)
                await turns()
            return await caller.answers(*methods)


@contextlib.asynccontextmanager
async def serving(handler: Remembering, *, send_bytes: int = 0, **limits: float) -> AsyncIterator[Served]:
    """Leaves only when every connection is closed and every handler is through."""
    listener = socket.create_server(("127.0.0.1", 0))
    if send_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    server = WireServer(handler, **limits)  # type: ignore[arg-type]
    await server.start(listener)
    try:
        served = Served(server, listener.getsockname()[:2])
        yield served
        await until(lambda: not server._open and not server.tasks, "a connection or a handler is left")
    finally:
        await server.stop(0)


async def turns(count: int = 3) -> None:
    """Let the loop look at its sockets: what was written to one on this machine has then been read at the other end."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what no event tells of."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - that is what it is for
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise TimeoutError(what) from None

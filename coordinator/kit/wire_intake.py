"""One client's connection to the relay lane's wire: bytes in, one request at a time, its answer out.

Owns one invariant: what was understood is what RFC 9112 says, or it was refused and the connection closed. llhttp decides what
a head and a chunk are; where it is laxer than the RFC, the rest is refused here. One request is served at a time; what comes
ahead of its turn waits unread, up to a bound. What a request means is its handler's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from coordinator.kit.wire_body import ChunkedBody, SizedBody
from coordinator.kit.wire_exchange import Exchange, HandOver, refusal
from coordinator.kit.wire_request import CHUNKED, HeadReader, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.kit.wire_exchange import WireHandler
    from coordinator.kit.wire_server import WireServer

_BUFFER_BYTES: Final = 64 * 1024
"""An answer that waits in the transport beyond this is ``full``."""
_AHEAD_BYTES: Final = 64 * 1024
"""Requests that wait for their turn beyond this are left in the kernel (where a hang-up cannot be seen either)."""
_DROPPED_BYTES: Final = 64 * 1024
"""A rest of a body that nobody wants is read up to here to save the connection."""
_LINGER_S: Final = 5.0
"""Time for a client to read the last answer, while what it still sends is dropped, before the connection is closed."""
_BODY_BYTES_PER_S: Final = 16 * 1024
"""A body may take ``body_s`` and what it needs at this rate."""

_GO_AHEAD: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing resets."""

_HEAD, _BODY, _SERVE, _HELD, _LINGER, _CLOSED = range(6)
"""Where a connection stands: between requests or in a head; in a body; serving; what came ahead waits for the loop's next turn
or for the client to read; the last answer is out, and what still comes is dropped until the client has closed; closed."""


class WireIntake(asyncio.Protocol):
    """Reads requests off one connection and has them served in turn.

    When is a client gone? A reset and a failed write say so. A shut-down write side (FIN) alone does not: RFC 9112 section 9.6.
    But clients that give up a call close their socket, a FIN is all that is seen of it, and a model call is too dear to wait for
    the first byte of its answer. So it is taken by what the client announced: one that said that this request is its last
    (``Connection: close``, HTTP/1.0), or has sent the next one already, may shut its side down and gets its answers; one
    that promised to keep the connection and ends it while it is served has hung up. (nginx, Envoy, Kestrel and Pingora take
    every FIN for a hang-up by default, HAProxy none.)
    """

    __slots__ = (
        "_ahead", "_allowed", "_body", "_eof", "_exchange", "_handler", "_pause", "_reader", "_resume", "_seen",
        "_seen_at", "_since", "_state", "_stopped", "_unsent", "_waiters", "full", "loop", "peer", "server",
        "transport"
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, server: WireServer, handler: WireHandler, loop: asyncio.AbstractEventLoop) -> None:
        self._ahead = b""
        self._allowed = 0
        self._body: ChunkedBody | SizedBody | None = None
        self._eof = False
        self._exchange: Exchange | None = None
        self._handler = handler
        self.loop = loop
        self._pause: Callable[[], None] | None = None
        self._reader = HeadReader()
        self._resume: Callable[[], None] | None = None
        self._seen = 0
        self._seen_at = self._since = server.now
        self._state = _HEAD
        self._stopped = False
        self._unsent = 0
        self._waiters: list[asyncio.Future[None]] = []
        self.full = False
        self.peer = ""
        self.server = server

    # ------------------------------------------------------------------------------------------ called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's: that is what the server listens for
        self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
        if not self.server.entered(self):
            self.transport.write(refusal(503, "There are too many connections."))
            self._close()

    def data_received(self, data: bytes) -> None:
        if self._state <= _BODY:
            self._read(data)
        elif self._state <= _HELD:
            self._keep_back(data)

    def eof_received(self) -> bool:
        self._eof = True
        exchange = self._exchange
        if self._ahead or (self._state == _SERVE and exchange is not None and not exchange.keep):
            return True
        if exchange is not None and not exchange.finished:
            self.abort()
        else:
            self._forget()  # the transport closes itself
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.left(self)
        self._forget()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost()

    def pause_writing(self) -> None:
        self.full = True
        if self._pause is not None:
            self._pause()

    def resume_writing(self) -> None:
        self.full = False
        if self._resume is not None:
            self._resume()
        self._wake()
        if self._state == _HELD:
            self.loop.call_soon(self._go_on)

    # ------------------------------------------------------------------------------------------- called by the exchange

    def answered(self, exchange: Exchange) -> None:
        """Its answer is whole."""
        if self._state == _SERVE:
            self._settle(exchange)
        elif not exchange.keep:  # in the midst of the body
            self._leave()

    def hang_up(self, *, reset: bool) -> None:
        """End the connection in the midst of an answer."""
        self._exchange = None
        if reset:
            with suppress(OSError):  # it is closed already
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.abort()
        else:
            self._close()

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self._resume = pause, resume

    async def room(self) -> None:
        """Wait for ``full`` to end, or for the connection's end."""
        waiter = self.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    # --------------------------------------------------------------------------------------------- called by the server

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._forget()
        self.transport.abort()

    def wind_up(self) -> None:
        """Close if nothing is under way (what is ends with ``Connection: close``)."""
        if self._state == _HEAD and not self._reader.begun:
            self._close()

    def check(self, head_s: float, body_s: float, idle_s: float) -> None:
        """Close what takes too long; called from time to time."""
        now, state = self.server.now, self._state
        if state == _BODY:
            got = 0 if self._body is None else self._body.got_bytes
            if got != self._seen:
                self._seen, self._seen_at = got, now
            if now - self._seen_at > body_s or now - self._since > body_s + got / _BODY_BYTES_PER_S:
                self._refuse(408, "The body came too slowly.")
        elif state == _HEAD and self._reader.begun:
            if now - self._since > head_s:
                self._refuse(408, "The head came too slowly.")
        elif state != _SERVE:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent, self._since = unsent, now
            elif now - self._since > (idle_s if unsent or state == _HEAD else _LINGER_S):
                self.abort()

    # ---------------------------------------------------------------------------------------------------------- reading

    def _read(self, data: bytes) -> None:
        """Go through what came, as far as one request and its answer allow."""
        try:
            while data and self._state <= _BODY:
                if self._state == _BODY:
                    data = self._read_body(data)
                elif self.full:  # who does not read answers gets no further ones
                    self._state = _HELD
                else:
                    data = self._read_head(data)
        except RequestRefused as refused:
            self._refuse(refused.status, str(refused))
            return
        if data:
            if self._state <= _HELD:
                self._keep_back(data)
        elif self._eof and self._state <= _BODY:
            self._close()

    def _read_head(self, data: bytes) -> bytes:
        """Returns what came behind it."""
        reader = self._reader
        if not reader.begun:
            self._since = self.server.now
        rest = reader.read(data)
        return b"" if rest is None else self._begin(reader, rest)

    def _begin(self, reader: HeadReader, rest: bytes) -> bytes:
        """The head is there: ask the handler. ``rest`` is what came behind it. Returns what is not used up of it."""
        need, came = reader.length, len(rest)
        self._exchange = exchange = Exchange(self, reader.head, need)
        self._state = _BODY
        if need > came + _DROPPED_BYTES or need == CHUNKED or (reader.expects and need > came):
            exchange.keep = False  # an answer now would leave too much to drop
        try:
            allowed = self._handler.admit(exchange)
            if isinstance(allowed, HandOver):
                self._hand_over(allowed, bytes(reader.received))
                return b""
        except BaseException:
            self.abort()
            raise
        if self._state != _BODY:
            return b""
        reader.received = b""
        if not exchange.started:
            exchange.keep = reader.head.keep
            if need > allowed:
                raise RequestRefused(413, "The body is too long.")
        if 0 <= need <= came:
            body = rest[:need]
            reader.skip(body)
            self._whole(body)
            return rest[need:]
        self._allowed = allowed
        room = self.server.body_room
        self._body = ChunkedBody(room) if need == CHUNKED else SizedBody(reader, room)
        self._seen, self._seen_at, self._since = 0, self.server.now, self.server.now
        if reader.expects and not came and not exchange.started:
            self.transport.write(_GO_AHEAD)
        return rest

    def _read_body(self, data: bytes) -> bytes:
        """Returns what came behind it."""
        body, exchange = self._body, self._exchange
        if body is None or exchange is None:
            return b""
        try:
            rest = body.feed(data)
        except RequestRefused:
            if body.got_bytes > self._allowed:  # whatever comes behind what is too long already
                raise RequestRefused(413, "The body is too long.") from None
            raise
        if exchange.finished:
            body.drop()
        elif body.got_bytes > self._allowed:
            raise RequestRefused(413, "The body is too long.")
        if body.whole:
            if body.extra:
                exchange.keep = False
            self._body = None
            self._whole(body.taken())
        return rest

    def _keep_back(self, data: bytes) -> None:
        """It is not its turn."""
        self._ahead += data
        if len(self._ahead) > _AHEAD_BYTES and not self._stopped:
            self._stopped = True
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """It is the turn of what was kept back."""
        if self._state == _HELD:
            data, self._ahead = self._ahead, b""
            self._state = _HEAD
            self._read_on()
            self._read(data)

    def _read_on(self) -> None:
        if self._stopped:
            self._stopped = False
            self.transport.resume_reading()

    # -------------------------------------------------------------------------------------------------- serving, ending

    def _whole(self, body: bytes) -> None:
        """All of the request is there."""
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.finished:
            self._settle(exchange)
            return
        exchange.body = body
        self._state = _SERVE
        # Made by hand: what a loop's create_task does beside it takes as long as the task.
        exchange.task = task = asyncio.Task(self._handler.serve(exchange), loop=self.loop, name="call")
        self.server.tasks.add(task)
        task.add_done_callback(exchange.served)

    def _settle(self, exchange: Exchange) -> None:
        """Request and answer are whole."""
        self._exchange = self._pause = self._resume = None
        self._since = self.server.now
        if not exchange.keep or self.server.closing:
            self._leave()
        elif self._ahead or self._eof:
            self._state = _HELD
            self.loop.call_soon(self._go_on)
        else:
            self._state = _HEAD

    def _hand_over(self, to: HandOver, received: bytes) -> None:
        self._exchange = None
        self._forget()
        self.server.left(self)
        protocol, transport = to.factory(), self.transport
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        self._read_on()
        protocol.data_received(received)
        if self._eof and not protocol.eof_received():
            transport.close()

    def _refuse(self, status: int, why: str) -> None:
        """Answer what cannot be served; with an answer begun already, there is only its end."""
        exchange = self._exchange
        if exchange is not None and not exchange.started:
            exchange.keep = False
            self._handler.refuse(exchange, status, why)
        self._exchange = None
        if exchange is not None and exchange.started and not exchange.finished:
            exchange.cut()
            return
        if exchange is None or not exchange.finished:
            self.transport.write(refusal(status, why))
        if exchange is not None:
            exchange.lost()
        self._leave()

    def _leave(self) -> None:
        """Nothing more is said. What the client still sends is dropped for a while, since closing with bytes unread would
        reset the connection, and the answer with it."""
        reading = self._state == _BODY or self._ahead
        if self._eof or (self.server.closing and not reading):
            self._close()
            return
        self._forget()
        self._state = _LINGER
        self._read_on()
        try:
            self.transport.write_eof()
        except OSError:  # a reset that was not seen yet
            self.transport.abort()

    def _close(self) -> None:
        """Close, once what was written is sent."""
        self._forget()
        self.transport.close()

    def _forget(self) -> None:
        """No more is read, and nothing of what was is needed any more."""
        self._state = _CLOSED
        self._since = self.server.now
        self._ahead = b""
        if self._body is not None:
            self._body.drop()
        self._body = self._pause = self._resume = None
        self._reader.close()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

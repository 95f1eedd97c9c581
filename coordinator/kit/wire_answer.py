"""An upstream's answer on its way to whoever reads it: a client's exchange, or a caller that wants the bytes.

Owns one invariant: every byte of the body goes out once and in order, the end is told only when the body is whole, and
whoever is slow holds the upstream. How an answer is framed is ``wire_upstream``'s; what it means is nobody's here.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.kit.wire import AnswerCut

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from coordinator.kit.wire import RawHeaders
    from coordinator.kit.wire_upstream import UpstreamConnection

_AHEAD_BYTES: Final = 256 * 1024
"""Of a body that nobody reads yet, no more is taken than this and what one read of the socket gives."""


class BodySink(Protocol):
    """Who takes a body: an exchange, or whoever passes it on to several."""

    @property
    def full(self) -> bool: ...

    @property
    def gone(self) -> bool: ...

    def send(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None: ...


class Answer:
    """The head of an answer, and the way to its body, which is read once: by ``flow``, by ``read`` or by iterating.

    Whoever does not read it to its end calls ``close``. ``length`` is the Content-Length, if there is one. What comes before
    anybody reads is kept, up to a bound; from there on the upstream is held.
    """

    __slots__ = (
        "_connection",
        "_exchange",
        "_fault",
        "_pieces",
        "_tap",
        "_waiter",
        "_waiting_bytes",
        "ended",
        "headers",
        "length",
        "reason",
        "status",
    )

    def __init__(
        self, connection: UpstreamConnection, status: int, reason: bytes, headers: RawHeaders, length: int | None
    ) -> None:
        self.ended = False
        self.headers = headers
        self.length = length
        self.reason = reason
        self.status = status
        self._connection: UpstreamConnection | None = connection
        self._exchange: BodySink | None = None
        self._fault: AnswerCut | ConnectionResetError | None = None
        self._pieces: list[bytes] = []
        self._tap: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_bytes = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises ``AnswerCut`` when it is not whole, after all that came."""
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            await self.peek()
        if not self._pieces:
            raise StopAsyncIteration
        data = self._taken()
        self.go_on()
        return data

    @property
    def at_hand(self) -> bytes:
        """The body's first bytes, if they are there already and nobody took them."""
        return self._pieces[0] if self._pieces else b""

    async def peek(self, patience_s: float = math.inf) -> bytes:
        """The body's first bytes, as soon as there are some, which stay to be read; empty when there is no body, or nothing of
        it within ``patience_s``. Raises ``AnswerCut`` when it broke off before."""
        timer, tired = None, list[bool]()
        try:
            while not self._pieces:
                if self._fault is not None:
                    raise self._fault
                if self.ended or tired:
                    return b""
                if timer is None and patience_s < math.inf:
                    timer = asyncio.get_running_loop().call_later(patience_s, self._tire, tired)
                await self._woken()
            return self._pieces[0]
        finally:
            if timer is not None:
                timer.cancel()

    def _tire(self, tired: list[bool]) -> None:
        tired.append(True)
        self._wake()

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises ``AnswerCut`` when it is not whole or longer than ``limit`` bytes."""
        pieces: list[bytes] = []
        room = limit
        async for piece in self:
            room -= len(piece)
            if room < 0:
                self.close()
                raise AnswerCut("the answer is longer than it may be")
            pieces.append(piece)
        return b"".join(pieces)

    async def flow(self, exchange: BodySink, tap: Callable[[bytes], None] | None) -> None:
        """All of the body to ``exchange``, which was started, and its end. All that one read of the socket gave leaves in one
        ``send``; before that ``tap`` sees the same bytes, and may ``close`` this answer so that they are not sent.

        Returns after ``finish()``. Raises ``AnswerCut`` when the upstream broke off or the answer was closed (cutting the
        exchange is the caller's business), ``ConnectionResetError`` when the client is gone. Being cancelled closes the
        upstream's connection at once.
        """
        self._exchange, self._tap = exchange, tap
        try:
            if self._pieces:
                self._pass(self._taken())
            elif exchange.gone:
                self._leave()
            if self.ended and self._fault is None:
                exchange.finish()
            elif self._fault is None:
                exchange.on_room(self.hold, self.go_on)
                if exchange.full:
                    self.hold()
                else:
                    self.go_on()
                await self._woken()
        except BaseException:
            self.close()
            raise
        finally:
            self._exchange = self._tap = None
        if self._fault is not None:
            raise self._fault

    def divert(self, exchange: BodySink) -> None:
        """While ``flow`` goes on: what comes from now on goes to another one, which stands where the last one stood."""
        self._exchange = exchange
        exchange.on_room(self.hold, self.go_on)

    def close(self) -> None:
        """Hang up, unless the answer is whole or broke off; that frees the upstream's call."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._fault = self._fault or AnswerCut("the answer was closed before its end")
            self._pieces.clear()
            connection.abort()
            self._wake()

    def hold(self) -> None:
        """Take no more from the upstream for now."""
        if self._connection is not None:
            self._connection.hold()

    def go_on(self) -> None:
        """Take what the upstream has."""
        if self._connection is not None:
            self._connection.go_on()

    def take(self, data: bytes) -> None:
        """A piece of the body came (called by the connection)."""
        if self._exchange is not None:
            self._pass(data)
            return
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _AHEAD_BYTES:
            self.hold()
        self._wake()

    def end(self) -> None:
        """The body is whole (called by the connection)."""
        self.ended = True
        self._connection = None
        try:
            if self._exchange is not None:
                self._exchange.finish()
        finally:
            self._wake()

    def cut(self, why: str) -> None:
        """No more will come, and it was not all (called by the connection)."""
        self._connection = None
        self._fault = self._fault or AnswerCut(why)
        self._wake()

    def _pass(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.gone:
            self._leave()
            return
        if self._tap is not None:
            self._tap(data)
            if self._fault is not None:
                return
        try:
            exchange.send(data)
        except ConnectionError:
            self._leave()

    def _leave(self) -> None:
        self._fault = ConnectionResetError("the client is gone")
        self.close()
        self._wake()

    def _taken(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._waiting_bytes = 0
        return data

    async def _woken(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

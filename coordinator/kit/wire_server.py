"""The relay lane's way in: a server for HTTP/1.1 whose cost for a call is a few microseconds.

Owns one invariant: no connection lasts that nobody serves or uses. One periodic look at all of them closes those that send a
head or a body too slowly, stay idle, or take no answer; there is no timer per request. Reading is ``wire_intake``'s, answering
``wire_exchange``'s; pages and everything that is not relayed are handed over to a framework.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from coordinator.kit.wire_body import BodyRoom
from coordinator.kit.wire_exchange import Exchange, FieldStarts, HandOver, WireHandler
from coordinator.kit.wire_intake import WireIntake

if TYPE_CHECKING:
    import socket

__all__ = ["Exchange", "HandOver", "WireHandler", "WireServer"]

_BACKLOG: Final = 1024
_LAST_WORDS_S: Final = 0.5
"""Time that handlers have to end, once they were told to."""


class WireServer:
    """Serves ``handler`` on one socket, on the loop that started it.

    ``head_s``: seconds for a head, from its first byte. ``body_s``: for a body, without a byte of it or beside what it needs
    at 16 KB/s. ``idle_s``: between requests, and for an answer that is over and that nobody takes. All of them are looked at
    from time to time, so that they may last up to a second longer. ``connections``: a further one is refused with a 503.
    ``room_bytes``: of bodies that are on their way, all together; what goes beyond is refused with a 503.
    """

    def __init__(
        self,
        handler: WireHandler,
        *,
        head_s: float = 15.0,
        body_s: float = 30.0,
        idle_s: float = 300.0,
        connections: int = 16_384,
        room_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self._connections = connections
        self._every_s = min(max(min(head_s, body_s, idle_s) / 4, 0.05), 1.0)
        self._handler = handler
        self._limits_s = head_s + self._every_s, body_s + self._every_s, idle_s + self._every_s
        self._open: set[WireIntake] = set()
        self._quiet: asyncio.Future[None] | None = None
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.body_room = BodyRoom(room_bytes)
        self.closing = False
        """No connection is kept after its answer any more."""
        self.now = 0.0
        """The loop's time at the last look at the connections: precise enough for limits, and free."""
        self.starts = FieldStarts()
        """Of the answers' fields."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Handlers at work."""

    async def start(self, listener: socket.socket) -> None:
        """Serve on ``listener``, which is the server's from now on."""
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        try:
            self._server = await loop.create_server(
                lambda: WireIntake(self, self._handler, loop), sock=listener, backlog=_BACKLOG
            )
        except BaseException:
            listener.close()
            raise
        self._look(loop)

    def refuse_new(self) -> None:
        """Take no further connections; those that are open go on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def stop(self, patience_s: float) -> None:
        """Close idle connections at once, the others after their answer, and what is left after ``patience_s`` seconds in
        the midst of it."""
        self.closing = True
        self.refuse_new()
        for intake in tuple(self._open):
            intake.wind_up()
        await self._calm(patience_s)
        for intake in tuple(self._open):
            intake.abort()
        for task in tuple(self.tasks):
            task.cancel()
        await self._calm(_LAST_WORDS_S)
        if self._timer is not None:
            self._timer.cancel()

    def entered(self, intake: WireIntake) -> bool:
        """A connection is there. False: it is one too many."""
        self._open.add(intake)
        return len(self._open) <= self._connections

    def left(self, intake: WireIntake) -> None:
        """A connection is there no more, or another protocol's."""
        self._open.discard(intake)
        self._tell()

    def served(self, task: asyncio.Task[None]) -> None:
        """A handler is through."""
        self.tasks.discard(task)
        self._tell()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time()
        for intake in tuple(self._open):
            intake.check(*self._limits_s)
        self._timer = loop.call_later(self._every_s, self._look, loop)

    def _tell(self) -> None:
        quiet = self._quiet
        if quiet is not None and not self._open and not self.tasks and not quiet.done():
            quiet.set_result(None)

    async def _calm(self, patience_s: float) -> None:
        """Until no connection and no handler is left, or the time is up."""
        self._quiet = asyncio.get_running_loop().create_future()
        self._tell()
        await asyncio.wait([self._quiet], timeout=patience_s)

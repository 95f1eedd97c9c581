"""One caller's place in a call that several share: what it was given of the answer, and what becomes of it.

Owns one invariant: a caller is given the answer's bytes in their order, once, as fast as its connection takes them, and lands
in exactly one way. How many others there are and what they do is not its affair (``flight``).
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.gateway.retold import NotRetellable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from coordinator.gateway.flight import Flight
    from coordinator.gateway.retold import Retold
    from coordinator.kit.wire import RawHeaders

_ENTITY: Final = frozenset({b"content-length", b"etag", b"content-md5", b"digest", b"content-digest", b"repr-digest"})
"""Headers that speak of the very bytes of a body: not true of one that is told anew."""


class Outlet(Protocol):
    """What a flight wants of a caller's exchange: ``kit.wire_server.Exchange`` has it."""

    @property
    def finished(self) -> bool: ...

    @property
    def full(self) -> bool: ...

    @property
    def gone(self) -> bool: ...

    def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, reason: bytes = b"", length: int | None
    ) -> None: ...

    def send(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None: ...


class _Nobody:
    """The outlet of who has landed."""

    finished = False
    full = False
    gone = True

    def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, reason: bytes = b"", length: int | None
    ) -> None:
        """Nothing is given any more, by this and the rest."""

    def send(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None: ...


NOBODY: Final = _Nobody()


class Landing(enum.Enum):
    """What became of a caller."""

    ALONE = "alone"
    """It was given nothing: it has to make a call of its own."""
    BROKEN = "broken"
    """It was given a part, and no more will come: its connection is to be cut."""
    LEFT = "left"
    """It hung up."""
    STALLED = "stalled"
    """It read so slowly that it was given up: its connection is to be cut."""
    WHOLE = "whole"


class Likeness(enum.StrEnum):
    """How a caller's request is the same as the first one's."""

    LOOSE = "loose"
    RAW = "raw"
    """Byte for byte, from another agent."""
    RETRY = "retry"
    """The same agent's, sent again."""
    STRICT = "strict"


class AnswerHead:
    """The head of the answer, as the upstream gave it."""

    __slots__ = ("headers", "length", "reason", "status")

    def __init__(self, status: int, headers: RawHeaders, reason: bytes, length: int | None) -> None:
        self.status = status
        self.headers = headers
        self.reason = reason
        self.length = length


class Seat:
    """One caller's place in a flight. ``likeness`` is None for the first one. ``more``: headers of this caller's own, added to
    the answer's. ``who`` stands in ``Flight.unfinished`` when its delivery was not whole."""

    __slots__ = (
        "_flight",
        "_more",
        "_outlet",
        "_retold",
        "_started",
        "_timer",
        "_waiter",
        "landing",
        "likeness",
        "taken",
        "who",
    )

    def __init__(
        self,
        flight: Flight,
        outlet: Outlet,
        who: Hashable,
        *,
        likeness: Likeness | None = None,
        more: Iterable[tuple[bytes, bytes]] = (),
        retold: Retold | None = None,
    ) -> None:
        self._flight = flight
        self._more = tuple(more)
        self._outlet: Outlet = outlet
        self._retold = retold
        self._started = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.landing: Landing | None = None
        """None: it is under way."""
        self.likeness = likeness
        self.taken = 0
        """Pieces of the answer that it has."""
        self.who = who

    @property
    def flight(self) -> Flight:
        """The call that it is a part of."""
        return self._flight

    @property
    def full(self) -> bool:
        return self._outlet.full

    @property
    def gone(self) -> bool:
        return self._outlet.gone

    @property
    def plain(self) -> bool:
        """It gets the bytes as they are."""
        return self._retold is None

    @property
    def saved(self) -> bool:
        """Its own call was avoided: it has the whole of a good answer for which another pays."""
        flight = self._flight
        return self.landing is Landing.WHOLE and flight.payer is not self and flight.whole and flight.status == 200

    async def landed(self) -> Landing:
        """Until it has everything, or will get no more. Being cancelled leaves the flight."""
        if self.landing is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._flight.leave(self)
        return self.landing or Landing.LEFT

    # -- called by the flight ------------------------------------------------------------------------------------------

    def wait(self, wait_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Give up when nothing can be passed on within ``wait_s``."""
        self._timer = loop.call_later(wait_s, self._tired)

    def begin(self, head: AnswerHead) -> None:
        """The answer has a head. Who is told anew waits for the first bytes."""
        try:
            if self._retold is None:
                self._start(head)
            else:
                self._retold.head(head.status, head.headers)
        except NotRetellable:
            self._unfit()
        except ConnectionError:
            self._flight.leave(self)

    def go_on(self, taken: int) -> None:
        """It was given the head and so many pieces before there was a flight."""
        self._started = True
        self.taken = taken
        self._outlet.on_room(self._flight.pace, self._resumed)

    def pump(self) -> None:
        """Give what it has not had, as far as its connection takes it; and the end, if that has come."""
        flight = self._flight
        try:
            while self.landing is None and self.taken < flight.pieces and not self._outlet.full:
                data, self.taken = flight.read(self.taken)
                self._give(data)
            if self.landing is None and flight.over and self.taken == flight.pieces:
                self._close()
        except NotRetellable:
            self._unfit()
        except ConnectionError:
            flight.leave(self)

    def direct(self, data: bytes) -> None:
        """The next piece to the only one there is, who had all before it: its connection's fullness holds the upstream."""
        self.taken += 1
        try:
            self._outlet.send(data)
        except ConnectionError:
            self._flight.leave(self)

    def land(self, landing: Landing) -> None:
        self.landing = landing
        self._outlet = NOBODY  # an exchange holds a whole request, and whoever accounts for this holds on to it
        if self._timer is not None:
            self._timer.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def drop(self, started: Landing = Landing.BROKEN) -> None:
        """No more for this one: what it got is not whole. Its connection is cut by whoever waits for its landing."""
        self._flight.remove(self, started if self._started else Landing.ALONE)

    def _start(self, head: AnswerHead) -> None:
        self._started = True
        if self._timer is not None:
            self._timer.cancel()
        headers, length = (*head.headers, *self._more), head.length
        if self._retold is not None:
            headers = tuple(pair for pair in headers if pair[0].lower() not in _ENTITY)
            length = None
        self._outlet.start(head.status, headers, reason=head.reason, length=length)
        self._outlet.on_room(self._flight.pace, self._resumed)

    def _give(self, data: bytes) -> None:
        if self._retold is not None:
            data = self._retold.feed(data)
        if data:
            self._send(data)

    def _send(self, data: bytes) -> None:
        if not self._started and self._flight.answered is not None:
            self._start(self._flight.answered)
        self._outlet.send(data)

    def _close(self) -> None:
        if not self._flight.whole:
            self.drop()
            return
        rest = self._retold.end() if self._retold is not None else b""
        if rest:
            self._send(rest)
        elif not self._started and self._flight.answered is not None:
            self._start(self._flight.answered)
        self._outlet.finish()
        self._flight.remove(self, Landing.WHOLE)

    def _resumed(self) -> None:
        if self.landing is None:
            self.pump()
            self._flight.pace()

    def _unfit(self) -> None:
        self._flight.barred.add(self.who)  # asking again, it would hear the same
        self.drop()

    def _tired(self) -> None:
        if self.landing is None and not self._started:
            self._flight.shut()  # who comes now may rather join whoever asks next
            self._flight.remove(self, Landing.ALONE)

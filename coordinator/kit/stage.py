"""The one way to wait: a door with ``width`` inside and ``room`` waiting, in four lanes.

Owns one invariant: a chair is free only when nobody waits. Whoever leaves hands its chair on in the same turn, so nobody
can slip in between, and a chair that is handed to a caller who is cancelled in that turn is handed on again.
It is a door, not a conveyor: a request stays in its task. It knows nothing of what goes on inside, of money or of rates.

A stage belongs to one event loop and is called from there alone.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import Shed, ShedReason
from coordinator.domain.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

_GRAIN_S: Final = 0.001
"""uvloop's clock and timers count milliseconds: a timer may fire this much too early."""
_SWEEP_S: Final = 2e-6
"""Sweeps are apart by this for each waiter, some twenty times what looking at one takes: a crowd cannot make them dear."""
_WINDOW_S: Final = 30.0
"""Throughput is that of the last one to two windows: a model call lasts up to half a minute."""
_LEAST_AFTER_S: Final = 0.1
_MOST_AFTER_S: Final = 60.0
"""Clients wait no longer than this for a ``retry-after``."""
_UNKNOWN_AFTER_S: Final = 1.0

_Place = asyncio.Future[ShedReason | None]
"""Of one who waits: its result is None when there is a chair for it."""
_Line = OrderedDict[_Place, tuple[float, float, Lane]]
"""When it came, its deadline (infinity: none), its lane. Ordered and keyed: who gives up in the middle costs O(1) too."""


class Stage:
    """A door. Each operation is O(1), whatever the number of those who wait.

    Order: lanes first, and a waiter counts as one lane better per ``promote_s`` it has waited (by fractions too), so
    it is never passed by one that came ``promote_s`` per lane later or more, and LOW is never starved. Inside a lane
    first come, first served. ``promote_s`` 0 is one line for all, infinity strict lanes. Both wait, so both age, and
    the order of two never changes: it is that of arrival + lane * ``promote_s``, of which the heads of four lines are
    compared. (Additive ageing; Jackson, "Waiting-time distributions for queues with dynamic priorities", 1962.)
    """

    __slots__ = (
        "_closed",
        "_entered",
        "_handicapped",
        "_inside",
        "_lines",
        "_mark",
        "_name",
        "_old_mark",
        "_promote_s",
        "_room",
        "_seats",
        "_shed",
        "_sweep_at",
        "_sweep_floor",
        "_timer",
        "_waited_s",
        "_waiting",
        "_width",
    )

    def __init__(self, name: str, *, width: int, room: int, promote_s: float) -> None:
        """``width`` 0 lets nobody in until it is resized; ``room`` 0 lets nobody wait. ``ValueError``: below zero."""
        self._closed = False
        self._entered = [0] * len(Lane)
        self._inside = 0
        self._lines: tuple[_Line, ...] = tuple(OrderedDict() for _ in Lane)
        self._mark = self._old_mark = (-math.inf, 0)
        self._name = name
        self._shed = dict.fromkeys(ShedReason, 0)
        self._sweep_at = math.inf
        self._sweep_floor = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._waited_s = 0.0
        self._waiting = 0
        self._seats = self._width = width
        self._room = room
        self._promote_s = promote_s
        self._handicapped: tuple[tuple[_Line, float], ...] = ()
        self.resize(width=width, room=room, promote_s=promote_s)

    def enter(self, lane: Lane, deadline: float | None = None) -> AbstractAsyncContextManager[None]:
        """``async with stage.enter(lane, deadline):`` the block is run with a chair, which it gives back however it ends.

        ``deadline`` is a reading of ``loop.time()`` by which the block must have begun. Raises ``Shed``.
        """
        return _Visit(self, lane, deadline)

    async def take(self, lane: Lane, deadline: float | None = None) -> None:
        """Take a chair as soon as one is free; whoever has it calls ``leave`` once. Raises ``Shed``."""
        in_time = deadline is None or deadline > asyncio.get_running_loop().time()
        if not (in_time and self.try_enter(lane)):
            await self._wait(lane, deadline)

    def try_enter(self, lane: Lane) -> bool:
        """Take a chair if one is free (then nobody waits); whoever gets True calls ``leave`` once."""
        if self._inside < self._seats:
            self._inside += 1
            self._entered[lane] += 1
            return True
        return False

    def leave(self) -> None:
        """Give a chair back: to who is next, if anybody waits and the door was not made narrower."""
        if self._inside <= 0:
            raise RuntimeError(f"{self._name}: left by somebody who is not inside")
        self._inside -= 1
        if self._waiting:
            self._seat()

    def resize(self, *, width: int | None = None, room: int | None = None, promote_s: float | None = None) -> None:
        """Change what is given, at once. ``ValueError``: below zero.

        Nobody is thrown out by it: while more are inside than ``width`` nobody enters, and while more wait than
        ``room`` no further ones may. (A narrower door may be a trial that is taken back a minute later.)
        """
        width = self._width if width is None else width
        room = self._room if room is None else room
        promote_s = self._promote_s if promote_s is None else promote_s
        if not (width >= 0 and room >= 0 and promote_s >= 0):
            raise ValueError(f"{self._name}: width {width}, room {room} and promote_s {promote_s} must not be below 0")
        self._width, self._room, self._promote_s = width, room, promote_s
        handicaps = (0.0, *(lane * promote_s for lane in range(1, len(Lane))))
        self._handicapped = tuple(zip(self._lines, handicaps, strict=True))
        if not self._closed:
            self._seats = width
            if self._waiting:
                self._seat()

    def close(self) -> None:
        """Shed all who wait and all who will come, for good; who is inside stays. Safe to call twice."""
        self._closed = True
        self._seats = 0
        for line in self._lines:
            while line:
                place, _ = line.popitem(last=False)
                self._turn_away(place, ShedReason.CLOSED)
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self, lane: Lane, deadline: float | None) -> None:
        """For one that found no chair, or came too late."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        ends = math.inf if deadline is None else deadline
        self._measure(now)
        if self._closed or ends <= now or self._waiting >= self._room:
            why = ShedReason.CLOSED if self._closed else ShedReason.LATE if ends <= now else ShedReason.FULL
            self._shed[why] += 1
            raise Shed(self._name, why, after_s=self._after_s(why, now))
        place: _Place = loop.create_future()
        line = self._lines[lane]
        line[place] = now, ends, lane
        self._waiting += 1
        if ends < self._sweep_at:
            self._sweep_by(ends, loop)
        try:
            refusal = await place
        except BaseException:  # cancelled, or its task is being destroyed
            if place in line:
                del line[place]
                self._waiting -= 1
            elif not place.cancelled() and place.result() is None:
                self.leave()  # the chair came in the same turn as the cancellation
            raise
        if refusal is not None:
            raise Shed(self._name, refusal, after_s=self._after_s(refusal, loop.time()))

    def _seat(self) -> None:
        """Hand out chairs until none is free or nobody waits."""
        now = asyncio.get_running_loop().time()
        while self._waiting and self._inside < self._seats:
            place, (since, ends, lane) = self._next_line().popitem(last=False)
            if ends <= now:
                self._turn_away(place, ShedReason.LATE)
                continue
            self._waiting -= 1
            if place.done():  # cancelled in this turn; its task has not run yet
                continue
            self._inside += 1
            self._entered[lane] += 1
            self._waited_s += max(now - since, 0.0)
            place.set_result(None)

    def _next_line(self) -> _Line:
        """The line of who is next; somebody waits."""
        best, best_rank = self._lines[0], math.inf
        for line, handicap in self._handicapped:
            if line:
                rank = line[next(iter(line))][0] + handicap
                if rank < best_rank or not best:
                    best, best_rank = line, rank
        return best

    def _turn_away(self, place: _Place, why: ShedReason) -> None:
        """Of one that was just taken out of its line."""
        self._waiting -= 1
        if not place.done():
            self._shed[why] += 1
            place.set_result(why)

    def _sweep_by(self, ends: float, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all: it stands at the earliest deadline that was ever asked for."""
        if self._timer is not None:
            self._timer.cancel()
        self._sweep_at = max(ends, self._sweep_floor)
        self._timer = loop.call_at(self._sweep_at, self._sweep)

    def _sweep(self) -> None:
        """Turn away whose deadline has passed. (Who gets a chair is looked at again then: nobody enters late.)"""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer, self._sweep_at = None, math.inf
        self._sweep_floor = now + self._waiting * _SWEEP_S
        earliest = math.inf
        for line in self._lines:
            late = []
            for place, (_, ends, _) in line.items():
                if ends <= now + _GRAIN_S:
                    late.append(place)
                elif ends < earliest:
                    earliest = ends
            for place in late:
                del line[place]
                self._turn_away(place, ShedReason.LATE)
        if earliest < math.inf:
            self._sweep_by(earliest, loop)

    def _measure(self, now: float) -> None:
        """Two marks of how many had left by when. They are moved by those who find no chair, so passing costs nothing.

        Only while somebody waits do callers leave as fast as the door can let them through: each line begins anew. Without
        a room nobody ever waits, and what is long ago counts no more.
        """
        age_s = now - self._mark[0]
        line_begins = self._room > 0 and not self._waiting
        if line_begins or age_s >= _WINDOW_S:
            mark = (now, sum(self._entered) - self._inside)
            anew = line_begins or (not self._waiting and age_s >= 2 * _WINDOW_S)
            self._old_mark = mark if anew else self._mark
            self._mark = mark

    def _after_s(self, why: ShedReason, now: float) -> float:
        """When those who wait now will be through, at the pace of late; unknown: as long as nobody has left."""
        if why is ShedReason.CLOSED:
            return _UNKNOWN_AFTER_S
        since, left_then = self._old_mark
        left = sum(self._entered) - self._inside - left_then
        if left:
            return min(max((self._waiting + 1) * (now - since) / left, _LEAST_AFTER_S), _MOST_AFTER_S)
        return min(max(now - since, _UNKNOWN_AFTER_S), _MOST_AFTER_S)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def entered(self) -> tuple[int, ...]:
        """Per lane, all who ever got a chair."""
        return tuple(self._entered)

    @property
    def inside(self) -> int:
        return self._inside

    def longest_wait_s(self, now: float) -> float:
        """Of those who wait at ``now``; 0: nobody."""
        return max((now - line[next(iter(line))][0] for line in self._lines if line), default=0.0)

    @property
    def name(self) -> str:
        return self._name

    @property
    def promote_s(self) -> float:
        return self._promote_s

    @property
    def room(self) -> int:
        return self._room

    @property
    def shed(self) -> Mapping[ShedReason, int]:
        """All who were ever shed, by reason."""
        return MappingProxyType(self._shed)

    @property
    def waited_s(self) -> float:
        """All waits that ended with a chair, together."""
        return self._waited_s

    @property
    def waiting(self) -> tuple[int, ...]:
        """Per lane."""
        return tuple(map(len, self._lines))

    @property
    def width(self) -> int:
        return self._width


class _Visit:
    """What ``async with`` needs: a class, because ``asynccontextmanager`` costs more than the door."""

    __slots__ = ("_deadline", "_lane", "_stage")

    def __init__(self, stage: Stage, lane: Lane, deadline: float | None) -> None:
        self._stage = stage
        self._lane = lane
        self._deadline = deadline

    async def __aenter__(self) -> None:
        await self._stage.take(self._lane, self._deadline)

    async def __aexit__(self, *_: object) -> None:
        self._stage.leave()

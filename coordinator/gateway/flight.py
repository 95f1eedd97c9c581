"""One upstream call that several callers share: bytes come in once and go out to everybody who asked for the same.

Owns one invariant: whoever stays is given exactly the bytes of the answer, from its first to its last, whenever it came and
however fast it reads; and the upstream call lives as long as anybody wants it, no longer. What may be shared is decided
elsewhere (``deduplicator``); a flight opens no connection and knows no protocol.

**Wiring.** The call is made by the task that serves its first caller, as if there were no flight, and offered to others
(``Deduplicator.offer``). When one of them joins, a flight is made of it, as far as it has come, and stands between the answer
and its callers from then on: it is an exchange to ``Answer.flow``, with ``gone``, ``full``, ``send``, ``finish`` and
``on_room``, and an answer that flows already is diverted to it. The task calls ``cut`` when it is through (nothing, when the
answer has ended; else the others hear of it) and waits for ``lead.landed()``: at once, unless the first caller reads slowly.
Who joins waits for ``Seat.landed`` (being cancelled leaves the flight), and asks anew when that is ``ALONE``.

* *One caller* costs a list entry per ``data_received`` more than plain ``flow(exchange, tap)``: no task, no future, no queue,
  no timer. For late joiners the bytes that passed are kept, as they are, until the answer ends: ``max_bytes`` of them at
  most, and nothing from there on. An answer has some 10 to 500 KB, so a thousand open streams hold tens of megabytes.
* *The first caller leaves*: its connection's loss must not cancel its task while ``leave`` says True (so must revoking its
  key: ``leave``, then cut the exchange, and cancel only on False). The task goes on as the upstream call's, with its chair,
  budget and retries; it is the same before the head came. When the last one leaves, ``abandon`` is called at once.
* *It is refused or fails before* ``head``: who waits lands ``ALONE``, in the order in which they came. Each asks ``join``
  again; the first finds nobody and leads, the others find it. So does who saw nothing for ``wait_s``, or whom this answer
  cannot be told. After ``head`` all get what came, and then the break.
* *Back pressure*: the upstream is held while everybody's connection is full. Who reads more slowly than others has an offset
  of its own into what is kept, and is cut off when it lags by more than ``max_bytes``.
* *Money*: ``payer`` is one seat at any time: the first caller, and when it leaves before the end the ``heir`` among those who
  remain. When none can pay it stays with who left, and ``heir`` sees to it that the call ends. ``Seat.saved`` says, after
  landing, whether this one's call was really avoided.
* *Who ends it*: leaving is a caller's own affair. What ends the upstream call ends it for all: ``cut``, and ``why`` tells each
  that had a part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from coordinator.gateway.seat import AnswerHead, Landing, Seat

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from coordinator.gateway.dialect import Denied
    from coordinator.gateway.retold import Retold
    from coordinator.gateway.seat import Likeness, Outlet
    from coordinator.kit.wire import RawHeaders

_JOINED_BYTES: Final = 64 * 1024
"""What was missed is given in portions of about this size."""


class FlightHost(Protocol):
    """Who makes the upstream call."""

    def abandon(self) -> object:
        """End it (cancel the task that makes it). Called when nobody is left to answer, but for the first caller, whose own
        leaving ends its task anyway."""

    def changed(self, flight: Flight) -> object:
        """It is open no more, or nobody is in it."""

    def given_up(self) -> object:
        """The first caller was too slow, and the call goes on for others."""

    def heir(self, seats: Sequence[Seat]) -> Seat | None:
        """Which of those who remain pays from now on; None: nobody can, and the call is ended."""


class Flight:
    """``answered`` and ``kept``: its first caller was given that head, and the pieces that came after it, before there was a
    flight.
    """

    __slots__ = (
        "_bytes",
        "_first",
        "_held",
        "_hold",
        "_host",
        "_kept",
        "_loop",
        "_max_bytes",
        "_only",
        "_release",
        "_seats",
        "answered",
        "barred",
        "lead",
        "open",
        "over",
        "payer",
        "pieces",
        "unfinished",
        "whole",
        "why",
    )

    def __init__(
        self,
        outlet: Outlet,
        who: Hashable,
        *,
        answered: AnswerHead | None = None,
        host: FlightHost,
        kept: list[bytes] | None = None,
        loop: asyncio.AbstractEventLoop,
        max_bytes: int,
        more: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._kept = kept or []
        self._bytes = sum(map(len, self._kept))
        self._first = 0  # the number of the first piece that is kept
        self._held = False
        self._hold: Callable[[], None] | None = None
        self._host = host
        self._loop = loop
        self._max_bytes = max_bytes
        self._release: Callable[[], None] | None = None
        self.answered = answered
        self.barred: set[Hashable] = set()
        """Who cannot be told this answer."""
        self.lead = Seat(self, outlet, who, more=more)
        self.open = True
        """Whether others may join."""
        self.over = False
        """Nothing more will come."""
        self.payer = self.lead
        self.pieces = len(self._kept)
        self.unfinished: set[Hashable] = set()
        """Who left without the whole of it."""
        self.whole = False
        self.why: Denied | None = None
        """What those are told who had a part of it when it ended; None: the upstream broke off."""
        self._seats = [self.lead]
        self._only: Seat | None = self.lead  # who is alone and has everything: nothing is counted for it but its pieces
        if answered is not None:
            self.lead.go_on(self.pieces)

    # -- what comes in -------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: RawHeaders, *, reason: bytes = b"", length: int | None = None) -> None:
        """The upstream answers. ``length`` is that of the body, if it is known."""
        self.answered = AnswerHead(status, headers, reason, length)
        for seat in tuple(self._seats):
            seat.begin(self.answered)

    def data(self, data: bytes) -> None:
        """The next bytes of the body."""
        if self.over:
            return
        self._kept.append(data)
        self._bytes += len(data)
        self.pieces += 1
        if self._only is not None:
            self._only.direct(data)
        else:
            for seat in tuple(self._seats):
                seat.pump()
        if self._bytes > self._max_bytes or self._first:
            self._forget()

    def end(self) -> None:
        """That was all of it."""
        self._finish(whole=True)

    def cut(self) -> None:
        """There is no more, and it was not all. Nothing happens when it has ended already."""
        self._finish(whole=False)

    # -- what ``Answer.flow`` knows an exchange by ---------------------------------------------------------------------

    send = data
    finish = end

    @property
    def gone(self) -> bool:
        """Nobody is there any more."""
        return all(seat.gone for seat in self._seats)

    @property
    def full(self) -> bool:
        """Nobody takes more at the moment."""
        return all(seat.full for seat in self._seats)

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._hold, self._release, self._held = pause, resume, self.full

    # -- who is in it --------------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Everybody has landed."""
        return not self._seats

    @property
    def kept_bytes(self) -> int:
        """Of the answer, held for those who come later or are slow."""
        return self._bytes

    @property
    def replayable(self) -> bool:
        """It ended, and all of it is still there."""
        return self.whole and not self._first

    @property
    def status(self) -> int:
        """Of the answer; 0: there is none yet."""
        return self.answered.status if self.answered is not None else 0

    def join(
        self,
        outlet: Outlet,
        who: Hashable,
        *,
        likeness: Likeness,
        more: Iterable[tuple[bytes, bytes]] = (),
        retold: Retold | None = None,
        wait_s: float,
    ) -> Seat | None:
        """A place for one more, with all from the first byte on. None: there is none any more (see ``takes``)."""
        if not self.takes(who):
            return None
        self.unfinished.discard(who)
        seat = Seat(self, outlet, who, likeness=likeness, more=more, retold=retold)
        self._seats.append(seat)
        self._only = None
        seat.wait(wait_s, self._loop)
        if self.answered is not None:
            seat.begin(self.answered)
            seat.pump()
        self.pace()
        return seat

    def takes(self, who: Hashable) -> bool:
        """Whether there is a place. One that is over takes in nobody but who is ``unfinished``: the same call, sent again."""
        return who not in self.barred and (self.open or (self.replayable and who in self.unfinished))

    def leave(self, seat: Seat) -> bool:
        """The caller hung up, or may not have an answer any more. True: the upstream call goes on for others."""
        if seat.landing is None:
            self.remove(seat, Landing.LEFT)
        return bool(self._seats) and not self.over and self.payer is not seat

    def hand_on(self) -> bool:
        """Who pays cannot pay for more. Whether another does from now on."""
        heir = self._host.heir([seat for seat in self._seats if seat is not self.payer])
        if heir is not None:
            self.payer = heir
        return heir is not None

    def shut(self) -> None:
        """Nobody joins any more."""
        if self.open:
            self.open = False
            self._host.changed(self)

    # -- called by seats -----------------------------------------------------------------------------------------------

    def read(self, place: int) -> tuple[bytes, int]:
        """Pieces from the numbered one on, joined up to a portion, and the number of the next."""
        kept, at = self._kept, place - self._first
        data, size, until = kept[at], len(kept[at]), at + 1
        while until < len(kept) and size < _JOINED_BYTES:
            size += len(kept[until])
            until += 1
        return (b"".join(kept[at:until]) if until > at + 1 else data), until + self._first

    def pace(self) -> None:
        """Hold the upstream while nobody takes more, and no longer."""
        held = self.full
        if held is self._held or self._hold is None or self._release is None:
            return
        self._held = held
        if held:
            self._hold()
        else:
            self._release()

    def remove(self, seat: Seat, landing: Landing) -> None:
        """It has everything, or gets no more."""
        self._seats.remove(seat)
        seat.land(landing)
        if landing is not Landing.WHOLE and landing is not Landing.ALONE:
            self.unfinished.add(seat.who)
        if self.payer is seat and self._seats and not self.over:
            heir = self._host.heir(self._seats)
            if heir is None:
                self.shut()
            else:
                self.payer = heir
        if self._seats:
            self._only = self._alone()
            self.pace()
            return
        if not self.over:
            self.over = True  # what its call still gives is for nobody
            if seat is not self.lead:
                self._host.abandon()
        self.open = False
        self._host.changed(self)

    # -- itself --------------------------------------------------------------------------------------------------------

    def _finish(self, *, whole: bool) -> None:
        if self.over:
            return
        self.over, self.whole, self.open, self._only = True, whole, False, None
        for seat in tuple(self._seats):
            seat.pump()
        if self._seats:
            self._host.changed(self)

    def _alone(self) -> Seat | None:
        only = self._seats[0]
        alone = len(self._seats) == 1 and only.plain and only.taken == self.pieces and not self.over
        return only if alone else None

    def _forget(self) -> None:
        """There is more than may be kept: let nobody in who would need it, and give up who lags behind that far."""
        self.shut()
        while self._seats:
            least = min(seat.taken for seat in self._seats)
            done = self._kept[: least - self._first]
            if done:
                del self._kept[: len(done)]
                self._first = least
                self._bytes -= sum(map(len, done))
            if self._bytes <= self._max_bytes or least == max(seat.taken for seat in self._seats):
                return  # all are equally far: the upstream is held, and what came was under way
            for seat in [seat for seat in self._seats if seat.taken == least]:
                seat.drop(Landing.STALLED)
                if seat is self.lead and self._seats:
                    self._host.given_up()
